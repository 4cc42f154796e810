//! `osctl kargs`.

use super::editing::{Editing, refused};
use crate::cli::{Session, exit, render, select};
use crate::client::Result;
use crate::model::edit::{PATH, What};
use crate::model::request::Request;
use crate::model::{Error, ErrorKind};

/// Arguments of `kargs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Add this argument; can be repeated.
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub append: Vec<String>,
    /// Add this argument, unless it is there; can be repeated.
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub append_if_missing: Vec<String>,
    /// Take this argument away, whoever put it there; can be repeated.
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub delete: Vec<String>,
    /// Take this argument away, if it is there; can be repeated.
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub delete_if_present: Vec<String>,
    /// Give this argument another value; can be repeated.
    #[arg(long, value_name = "KEY=[OLD=]NEW")]
    pub replace: Vec<String>,
    /// Without a change: show the arguments of this deployment [default: the one that boots next].
    #[arg(long, value_name = "DEPLOYMENT")]
    pub deployment: Option<String>,
    /// Without a change: show who put each argument there, one a line.
    #[arg(long)]
    pub owner: bool,
    /// Refused: the arguments that osctl edits are in a file.
    #[arg(long)]
    pub editor: bool,
    /// Refused: the arguments of the running system stay as they are anyway.
    #[arg(long)]
    pub import_proc_cmdline: bool,
    /// How to edit.
    #[command(flatten)]
    pub editing: Editing,
}

impl Args {
    /// What is asked; `None` to show what there is.
    pub fn request(&self) -> crate::model::Result<Option<Request>> {
        if self.editor {
            return Err(refused("--editor", "what osctl declares is in a file")
                .hint(format!("edit {PATH}, then: osctl reconcile")));
        }
        if self.import_proc_cmdline {
            let why = "arguments that are this host's own stay in every deployment";
            return Err(refused("--import-proc-cmdline", why)
                .hint("name what shall be added or taken away: --append, --delete"));
        }
        let wishes: [(What, &[String]); 5] = [
            (What::KargsAppend, &self.append),
            (What::KargsAppendIfMissing, &self.append_if_missing),
            (What::KargsDelete, &self.delete),
            (What::KargsDeleteIfPresent, &self.delete_if_present),
            (What::KargsReplace, &self.replace),
        ];
        if wishes.iter().all(|(_, items)| items.is_empty()) {
            return Ok(None);
        }
        if self.owner || self.deployment.is_some() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "--owner and --deployment only show what there is",
            )
            .hint("a change is for the deployment that boots next"));
        }
        self.editing.request(wishes, false).map(Some)
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    if let Some(request) = args.request()? {
        return args.editing.run(&request, session).await;
    }
    let status = session.client.status().await?;
    let shown = match &args.deployment {
        Some(name) => select::named(&status, name)?,
        None => status.next().ok_or_else(|| {
            Error::new(ErrorKind::WrongState, "there is no deployment yet").hint("see: osctl status")
        })?,
    };
    render::print(&render::status::kargs(shown, args.owner))?;
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn request(words: &[&str]) -> crate::model::Result<Option<Request>> {
        let osctl = crate::cli::args::Osctl::parse_from(["osctl", "kargs"].iter().chain(words));
        let crate::cli::args::Verb::Kargs(args) = osctl.verb else { panic!("another verb") };
        args.request()
    }

    #[test]
    fn what_is_not_served_is_refused_by_its_name() {
        for option in ["--editor", "--import-proc-cmdline", "--apply-live"] {
            let error = request(&[option, "--append=a"]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported);
            assert!(error.to_string().starts_with(&format!("{option} is not served: ")), "{error}");
            assert!(error.hint.is_some());
        }
        assert_eq!(request(&["--append=root=x"]).unwrap_err().kind, ErrorKind::InvalidArgument);
        assert_eq!(request(&["--append=x", "--owner"]).unwrap_err().kind, ErrorKind::InvalidArgument);
    }

    #[test]
    fn without_a_change_there_is_nothing_to_request() {
        assert_eq!(request(&["--owner", "--deployment", "booted"]).unwrap(), None);
        let Some(Request::EditDerivation { edit, options }) =
            request(&["--append=a=b", "--delete", "c", "-n"]).unwrap()
        else {
            panic!("nothing is requested")
        };
        let wishes = [(What::KargsDelete, "c".to_owned()), (What::KargsAppend, "a=b".to_owned())];
        assert_eq!((edit.wishes(), options.dry_run), (wishes.as_slice(), true));
    }
}
