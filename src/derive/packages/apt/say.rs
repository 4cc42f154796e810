//! What apt and dpkg complain about.

use crate::derive::packages::base::{self, SHOWN, nobody_has, touches, unfitting, unsolved};
use crate::model::Error;
use crate::model::text::one_line;
use crate::sys::process::tail;

/// What apt says about requests that cannot be met.
pub(super) fn unsolvable(stdout: &str, stderr: &str) -> Error {
    let missing: Vec<&str> = stderr
        .lines()
        .filter_map(|l| {
            l.strip_prefix("E: Unable to locate package ").or_else(|| {
                let rest = l.strip_prefix("E: Package '")?;
                rest.strip_suffix("' has no installation candidate")
            })
        })
        .collect();
    if !missing.is_empty() {
        return nobody_has(&missing);
    }
    let version = stderr.lines().find_map(|l| l.strip_prefix("E: Version "));
    if let Some(version) = version {
        return unsolved(format!("no repository has the version {}", one_line(version)));
    }
    let block = |start: &str| -> Vec<String> {
        let lines = stdout.lines().skip_while(|l| !l.starts_with(start)).skip(1);
        let lines = lines.take_while(|l| l.starts_with(' '));
        lines.map(|l| one_line(&l.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
    };
    let held = block("The following held packages will be changed");
    if !held.is_empty() {
        return touches(&held.join(" ").split(' ').collect::<Vec<_>>());
    }
    let problems = block("The following packages have unmet dependencies");
    if problems.is_empty() {
        return unsolved(format!("apt finds no solution: {}", one_line(&tail(stderr, SHOWN))));
    }
    unfitting(&problems)
}

/// What apt says about repositories that it cannot use.
pub(super) fn unavailable(stderr: &str) -> Error {
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("E: ")).collect();
    let why = if errors.is_empty() { tail(stderr, SHOWN) } else { errors.join("; ") };
    base::unavailable(&why)
}

/// What dpkg says about a package that it cannot install.
pub(super) fn scriptlet_failed(output: &str) -> Error {
    let package = output.lines().find_map(|l| {
        let rest = l.trim_start().strip_prefix("dpkg: error processing ")?;
        let rest = rest.strip_prefix("package ").or_else(|| rest.strip_prefix("archive "))?;
        rest.split_whitespace().next()
    });
    base::not_installed(package, output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ErrorKind;

    #[test]
    fn what_apt_complains_about_is_said_with_its_names() {
        let unmet = "Some packages could not be installed.\n\
            The following packages have unmet dependencies:\n agent : Depends: libc6 (>= 3) but 2.36-9 is to be installed\n         Conflicts: moby\nE: x\n";
        for (stdout, stderr, expected) in [
            (
                "",
                "E: Unable to locate package nope\nE: Unable to locate package no\n",
                "no repository has nope, no",
            ),
            ("", "E: Package 'virtual' has no installation candidate\n", "no repository has virtual"),
            (
                "",
                "E: Version '9' for 'vim' was not found\n",
                "no repository has the version '9' for 'vim' was not found",
            ),
            (
                "The following held packages will be changed:\n  libc6 dbus\n  tar\n0 upgraded\n",
                "E: Held packages were changed and -y was used without --allow-change-held-packages.\n",
                "the packages of the base would have to change: libc6, dbus, tar",
            ),
            (
                unmet,
                "E: Unable to correct problems, you have held broken packages.\n",
                "the requests do not fit the base: agent : Depends: libc6 (>= 3) but 2.36-9 is to be installed; Conflicts: moby",
            ),
        ] {
            let error = unsolvable(stdout, stderr);
            assert_eq!(error.kind, ErrorKind::DepsolveFailed);
            assert_eq!(error.to_string(), format!("{expected}; nothing was staged"));
        }
        let error = unavailable("W: x\nE: Failed to fetch http://u:p@r/x  Could not connect\n");
        assert!(error.to_string().contains("E: Failed to fetch http://r/x  Could not connect"), "{error}");
    }

    #[test]
    fn a_failing_script_names_its_package_and_what_it_said() {
        let error = scriptlet_failed(
            "Setting up a (1) ...\nboom\ndpkg: error processing package a (--configure):\n x\n",
        );
        assert_eq!(error.kind, ErrorKind::ScriptletFailed);
        assert!(
            error
                .to_string()
                .starts_with("a cannot be installed; nothing was staged:\nSetting up a (1) ...\nboom")
        );
        assert_eq!(error.details["package"], "a");
    }
}
