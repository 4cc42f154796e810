//! Directories and links of `/var` as tmpfiles.d(5) lines, and the files that cannot become any.

use crate::model::Result;
use crate::pull::merge::join;
use crate::pull::tree::{Dir, link_target, read_dirmeta};
use ostree_ext::ostree;
use std::fmt::Write;

/// What was found in `/var`.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: Vec<String>,
    /// Files, by the path they have in the image.
    pub files: Vec<String>,
}

impl Lines {
    /// Adds a directory and everything in it. `shown` is where the image has it, `at` where the host will.
    pub(super) fn add(&mut self, repo: &ostree::Repo, dir: &mut Dir, shown: &str, at: &str) -> Result<()> {
        let (uid, gid, mode, _) = read_dirmeta(repo, &dir.meta)?;
        self.lines.push(format!("d {} {mode:04o} {uid} {gid} - -", escape(&format!("/{at}"))));
        self.add_children(repo, dir, shown, at)
    }

    /// Adds everything in a directory, and not the directory.
    pub(super) fn add_children(
        &mut self,
        repo: &ostree::Repo,
        dir: &mut Dir,
        shown: &str,
        at: &str,
    ) -> Result<()> {
        let entries = dir.open(repo)?;
        for (name, object) in &entries.files {
            match link_target(repo, object)? {
                Some(target) => self.lines.push(format!(
                    "L {} - - - - {}",
                    escape(&format!("/{}", join(at, name))),
                    escape(&target)
                )),
                None => self.files.push(format!("/{}", join(shown, name))),
            }
        }
        for (name, dir) in &mut entries.dirs {
            self.add(repo, dir, &join(shown, name), &join(at, name))?;
        }
        Ok(())
    }

    /// The file, in the order of paths: the same for every host. Empty if there is nothing to say.
    pub(super) fn text(&self) -> String {
        if self.lines.is_empty() {
            return String::new();
        }
        let mut lines = self.lines.clone();
        lines.sort_by(|a, b| a[2..].cmp(&b[2..]));
        format!(
            "# Made by osctl of the directories and links that the image has in /var.\n{}\n",
            lines.join("\n")
        )
    }
}

/// A field of a tmpfiles.d line: specifiers doubled, everything that could end or quote the field as `\xNN`.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '%' => out.push_str("%%"),
            c if c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '\\' | '#') => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    write!(out, "\\x{byte:02x}").expect("writing to a String cannot fail");
                }
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn names_cannot_break_out_of_their_field() {
        for (name, expected) in [
            ("/var/lib/a", "/var/lib/a"),
            ("/var/a b", "/var/a\\x20b"),
            ("/var/a\nF /etc/passwd", "/var/a\\x0aF\\x20/etc/passwd"),
            ("/var/%h", "/var/%%h"),
            ("/var/\"q\\", "/var/\\x22q\\x5c"),
            ("/var/\u{a0}", "/var/\\xc2\\xa0"),
            ("/var/ä", "/var/ä"),
        ] {
            assert_eq!(escape(name), expected);
        }
    }
}
