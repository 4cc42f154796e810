//! `osctl internal-docs`: manual pages and completions, made from the arguments themselves.

use crate::cli::args::Osctl;
use crate::cli::exit;
use crate::client::Result;
use crate::model::{Context, config};
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Arguments of `internal-docs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write manual pages here.
    #[arg(long, value_name = "DIR")]
    pub man: Option<PathBuf>,
    /// Write completions for bash, zsh and fish here.
    #[arg(long, value_name = "DIR")]
    pub completions: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<u8> {
    if let Some(dir) = &args.man {
        man(dir)?;
    }
    if let Some(dir) = &args.completions {
        std::fs::create_dir_all(dir).doing("making the directory of completions")?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut Osctl::command(), "osctl", dir)
                .doing(format!("writing the completion for {shell}"))?;
        }
    }
    Ok(exit::OK)
}

fn man(dir: &Path) -> crate::model::Result<()> {
    std::fs::create_dir_all(dir).doing("making the directory of manual pages")?;
    let mut osctl = Osctl::command();
    osctl.build();
    pages(dir, &osctl, "osctl")?;
    page(dir, crate::daemon::Args::command(), "osctld", "8", "")?;
    std::fs::write(dir.join("osctld.toml.5"), settings()).doing("writing the manual page of osctld.toml")
}

/// The page of the configuration file, from the table that its reader uses.
fn settings() -> String {
    let roff = |text: &str| text.replace('\\', "\\\\").replace('-', "\\-");
    let mut text = format!(
        ".TH OSCTLD.TOML 5 \"\" \"osctl {}\" osctl\n\
         .SH NAME\nosctld.toml \\- how osctld works\n\
         .SH SYNOPSIS\n\
         /usr/lib/osctl/osctld.toml\n.br\n/usr/lib/osctl/osctld.d/*.toml\n.br\n\
         /etc/osctl/osctld.toml\n.br\n/etc/osctl/osctld.d/*.toml\n\
         .SH DESCRIPTION\n\
         All of these files are read, in this order, the ones of a directory in the order of their names. Of a setting, \
         the last file that has it counts. A file in /etc/osctl/osctld.d replaces the one in /usr/lib/osctl/osctld.d \
         that has the same name; a link to /dev/null only takes it away. The files are read anew by every job.\n.PP\n\
         A key that is not in this page, or a wrong value, is an error: jobs that fetch images fail and name the \
         file and the line, the state is degraded, and everything else, as osctl rollback, works on.\n\
         .SH SETTINGS\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut table = "";
    for key in config::KEYS {
        if key.table != table {
            table = key.table;
            text.push_str(&format!(".SS [{}]\n", roff(table)));
        }
        text.push_str(&format!(".TP\n.B {}\n{}\n", roff(key.name), roff(key.about)));
        text.push_str(&format!("Its value is {}.\n", roff(key.value)));
    }
    text.push_str(".SH EXAMPLE\n.nf\n[pull]\nrate\\-limit = \"2Mi\"\n.fi\n.SH SEE ALSO\n.BR osctld (8)\n");
    text
}

/// The page of a command, and those of the commands below it.
fn pages(dir: &Path, command: &clap::Command, words: &str) -> crate::model::Result<()> {
    page(dir, command.clone().bin_name(words), &words.replace(' ', "-"), "1", &exit_status())?;
    for below in command.get_subcommands().filter(|v| !v.is_hide_set()) {
        pages(dir, below, &format!("{words} {}", below.get_name()))?;
    }
    Ok(())
}

/// The section of exit codes, in roff.
fn exit_status() -> String {
    let entries = exit::TABLE.iter().map(|(code, meaning)| {
        // A hyphen is one that can be searched for and copied.
        format!(".TP\n{code}\n{}\n", meaning.replace('-', "\\-"))
    });
    format!(".SH \"EXIT STATUS\"\n{}", entries.collect::<String>())
}

fn page(
    dir: &Path,
    command: clap::Command,
    name: &str,
    section: &str,
    more: &str,
) -> crate::model::Result<()> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command)
        .title(name.to_uppercase())
        .section(section)
        .source(concat!("osctl ", env!("CARGO_PKG_VERSION")))
        .manual("osctl")
        .render(&mut text)
        .and_then(|()| text.write_all(more.as_bytes()))
        .and_then(|()| std::fs::write(dir.join(format!("{name}.{section}")), &text))
        .doing_with(|| format!("writing the manual page of {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args { man: Some(dir.path().into()), completions: Some(dir.path().into()) };
        assert_eq!(run(&args).unwrap(), exit::OK);
        for file in [
            "osctl.1",
            "osctl-upgrade.1",
            "osctl-status.1",
            "osctl-config-explain-auth.1",
            "osctld.8",
            "osctld.toml.5",
            "osctl.bash",
            "_osctl",
            "osctl.fish",
        ] {
            assert!(dir.path().join(file).exists(), "{file}");
        }
        assert!(!dir.path().join("osctl-internal-docs.1").exists());
        let upgrade = std::fs::read_to_string(dir.path().join("osctl-upgrade.1")).unwrap();
        assert!(upgrade.contains("osctl upgrade") && upgrade.contains(".SH \"EXIT STATUS\""), "{upgrade}");
        let title = upgrade.lines().find(|l| l.starts_with(".TH")).unwrap();
        let settings = std::fs::read_to_string(dir.path().join("osctld.toml.5")).unwrap();
        assert!(settings.contains(".SS [pull]\n.TP\n.B connections\n"), "{settings}");
        assert!(settings.contains(".B rate\\-limit\n"), "{settings}");
        assert!(title.contains(&format!("osctl {}", env!("CARGO_PKG_VERSION"))), "{title}");
    }
}
