//! `osctl config`.

use crate::cli::{exit, render};
use crate::client::Result;
use crate::model::Context;
use crate::model::image::ImageRef;
use crate::sys::auth::{self, Found};
use cap_std_ext::cap_std::{ambient_authority, fs::Dir};
use std::path::Path;

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to show.
    #[command(subcommand)]
    pub what: What,
}

/// What can be shown of the configuration.
#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// Show which credentials file is used for an image, and where they are looked for. Prints no secret.
    ExplainAuth {
        /// The image.
        image: ImageRef,
        /// The credentials file that the bound image names itself.
        #[arg(long, value_name = "FILE")]
        auth_file: Option<String>,
    },
}

/// Runs the verb. It reads files only and needs no daemon.
pub fn run(args: &Args, root: &Path) -> Result<u8> {
    let What::ExplainAuth { image, auth_file } = &args.what;
    let root = Dir::open_ambient_dir(root, ambient_authority())
        .doing_with(|| format!("opening the configuration root {}", root.display()))?;
    let repository = image.repository();
    let mut text = format!("Credentials for {repository}; the first file that exists is used (*):\n");
    let mut used = false;
    for (path, found) in auth::explain(&root, auth_file.as_deref(), repository) {
        let what = match found {
            Found::Missing => "is not there",
            Found::Unreadable => "cannot be read (try again as root)",
            Found::Damaged => "is not a credentials file",
            Found::Without => "has no entry for it",
            Found::With => "has an entry for it",
            Found::Helper => "asks a credential helper for it",
        };
        let mark = if found != Found::Missing && !used { "* " } else { "  " };
        used |= found != Found::Missing;
        text.push_str(&format!("{mark}{} {what}\n", path.display()));
    }
    if !used {
        text.push_str("None: the registry is asked without credentials.\n");
    }
    render::print(&text)?;
    Ok(exit::OK)
}
