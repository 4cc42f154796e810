//! `osctl rebase`.

use super::upgrade::Limits;
use crate::cli::args::Following;
use crate::cli::{Session, follow};
use crate::client::Result;
use crate::model::image::ImageRef;
use crate::model::request::{Options, Request};

/// Arguments of `rebase`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image; without a transport it is in a registry.
    pub image: String,
    /// How the image is reached: registry, oci, oci-archive, containers-storage or dir.
    #[arg(long, value_name = "TRANSPORT")]
    pub transport: Option<String>,
    /// Kernel argument of a first deployment; can be repeated.
    #[arg(long = "karg", value_name = "ARG")]
    pub kargs: Vec<String>,
    /// Stateroot of a first deployment.
    #[arg(long, value_name = "NAME")]
    pub stateroot: Option<String>,
    /// What to allow and require.
    #[command(flatten)]
    pub limits: Limits,
    /// How to follow the job.
    #[command(flatten)]
    pub following: Following,
}

impl Args {
    /// What is asked.
    pub fn request(&self) -> crate::model::Result<Request> {
        let image: ImageRef = match self.transport.as_deref() {
            None => self.image.parse()?,
            Some("registry" | "docker") => format!("docker://{}", self.image).parse()?,
            Some(other) => format!("{other}:{}", self.image).parse().and_then(|i: ImageRef| {
                // An unknown transport would read as a host of a registry.
                if i.transport.prefix() == format!("{other}:") { Ok(i) } else { Err(unknown(other)) }
            })?,
        };
        let options =
            Options { kargs: self.kargs.clone(), stateroot: self.stateroot.clone(), ..self.limits.options() };
        Ok(match self.limits.bundle()? {
            Some(bundle) => Request::ImportBundle { bundle, image: Some(image), options },
            None => Request::Rebase { image, options },
        })
    }
}

fn unknown(transport: &str) -> crate::model::Error {
    use crate::model::{Error, ErrorKind};
    Error::new(ErrorKind::InvalidArgument, format!("unknown transport {transport:?}"))
        .hint("use registry, oci, oci-archive, containers-storage or dir")
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    follow::run(session, &args.request()?, &args.following).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn image(words: &[&str]) -> crate::model::Result<String> {
        let all = ["osctl", "rebase"].iter().chain(words);
        let osctl = crate::cli::args::Osctl::parse_from(all);
        let crate::cli::args::Verb::Rebase(args) = osctl.verb else { panic!("another verb") };
        match args.request()? {
            Request::Rebase { image, .. } => Ok(image.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_transport_can_be_a_prefix_or_an_option() {
        assert_eq!(image(&["quay.io/os:1"]).unwrap(), "docker://quay.io/os:1");
        assert_eq!(image(&["oci:/x"]).unwrap(), "oci:/x");
        assert_eq!(image(&["--transport", "oci", "/x"]).unwrap(), "oci:/x");
        assert_eq!(image(&["--transport", "registry", "quay.io/os"]).unwrap(), "docker://quay.io/os");
        assert!(image(&["--transport", "ftp", "quay.io/os"]).is_err());
        for malformed in ["", "quay.io//os", "me:secret@quay.io/os"] {
            let error = image(&[malformed]).unwrap_err();
            assert_eq!(crate::cli::exit::of_kind(error.kind), crate::cli::exit::USAGE, "{malformed}");
        }
    }
}
