//! What dnf and rpm complain about.

use crate::derive::packages::base::{self, SHOWN, nobody_has, unavailable, unfitting, unsolved};
use crate::model::Error;
use crate::model::text::one_line;
use crate::sys::process::tail;

/// The end of what was said, on one line.
pub(super) fn last(stderr: &str) -> String {
    one_line(&tail(stderr.trim(), SHOWN))
}

/// What both versions of dnf say when they find no answer.
pub(super) fn failed(stderr: &str) -> Error {
    let after = |start: &str| -> Vec<&str> {
        stderr.lines().filter_map(|line| line.trim().strip_prefix(start)).collect()
    };
    let missing = after("No match for argument: ");
    if !missing.is_empty() {
        return nobody_has(&missing);
    }
    if let Some(rest) = after("No matching repositories for ").first() {
        let id = rest.split(". Add ").next().unwrap_or(rest).trim_end_matches('.');
        return unsolved(format!("no repository has the id {}", one_line(id)))
            .hint("those of the image are in its /etc/yum.repos.d, others in repos: of a drop-in");
    }
    let is_start = |line: &str| line.starts_with("Problem") && line.contains(": ");
    let lines = stderr.lines().map(str::trim).skip_while(|line| !is_start(line));
    let problems: Vec<String> = lines
        .take_while(|line| is_start(line) || line.starts_with("- "))
        .map(|line| {
            let line = line.strip_prefix("- ").unwrap_or(line);
            let line = if is_start(line) { line.split_once(": ").map_or(line, |(_, l)| l) } else { line };
            // It is excluded because the base has it.
            one_line(&line.replace("is filtered out by exclude filtering", "would change the base"))
        })
        .collect();
    if problems.is_empty() { unavailable(&tail(stderr.trim(), SHOWN)) } else { unfitting(&problems) }
}

/// Whether a script failed, although rpm goes on after most of them.
pub(super) fn has_failed_script(output: &str) -> bool {
    output.lines().any(|line| failed_script(line).is_some())
}

/// `warning: %post(agent-1.0-1.noarch) scriptlet failed, exit status 3`
fn failed_script(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("warning: %").or_else(|| line.strip_prefix("error: %"))?;
    let (name, rest) = rest.split_once('(')?.1.split_once(')')?;
    rest.starts_with(" scriptlet failed").then_some(name)
}

/// What rpm says about a package that it cannot install.
pub(super) fn not_installed(output: &str) -> Error {
    base::not_installed(output.lines().find_map(failed_script), output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ErrorKind;

    #[test]
    fn what_dnf_complains_about_is_said_with_its_names() {
        for (said, expected) in [
            (
                // dnf 5.4
                "Failed to resolve the transaction:\nNo match for argument: nope\nYou can try to add to command line:\n  --skip-unavailable to skip unavailable packages\n",
                "no repository has nope",
            ),
            ("No match for argument: a-9\nNo match for argument: b\n", "no repository has a-9, b"),
            (
                "Failed to resolve the transaction:\nProblem: package too-new-1.0-1.noarch from test requires libbase >= 2, but none of the providers can be installed\n  - conflicting requests\n  - package base-2.0-1.noarch from test is filtered out by exclude filtering\nYou can try to add to command line:\n  --skip-broken to skip uninstallable packages\n",
                "the requests do not fit the base: package too-new-1.0-1.noarch from test requires libbase >= 2, but none of the providers can be installed; conflicting requests; package base-2.0-1.noarch from test would change the base",
            ),
            (
                // dnf 5.4, and our script without the advice.
                "No matching repositories for elsewhere. Add \"--help\" for more information about the arguments.\n",
                "no repository has the id elsewhere",
            ),
            ("No matching repositories for else.where.\n", "no repository has the id else.where"),
            (
                // dnf 4.14
                "\n Problem 1: conflicting requests\n  - nothing provides x needed by a\n Problem 2: conflicting requests\n",
                "the requests do not fit the base: conflicting requests; nothing provides x needed by a; conflicting requests",
            ),
        ] {
            let error = failed(said);
            assert_eq!(error.kind, ErrorKind::DepsolveFailed, "{said}");
            assert_eq!(error.to_string(), format!("{expected}; nothing was staged"));
        }
        let error = failed("Failed to download metadata for http://u:p@r/x\n");
        assert_eq!(error.kind, ErrorKind::RepoUnavailable);
        assert!(error.to_string().contains("for http://r/x"), "{error}");
    }

    #[test]
    fn a_failing_script_names_its_package_although_rpm_goes_on() {
        for line in [
            "warning: %post(unlicensed-1.0-1.noarch) scriptlet failed, exit status 3",
            "error: %prein(unlicensed-1.0-1.noarch) scriptlet failed, exit status 3",
            "warning: %triggerin(unlicensed-1.0-1.noarch) scriptlet failed, signal 9",
        ] {
            let said = format!("no licence was found\n{line}\n");
            assert!(has_failed_script(&said), "{line}");
            let error = not_installed(&said);
            assert_eq!(error.kind, ErrorKind::ScriptletFailed);
            assert_eq!(error.details["package"], "unlicensed-1.0-1.noarch");
            assert!(error.to_string().contains("no licence was found"), "{error}");
        }
        for said in
            ["warning: /etc/x created as /etc/x.rpmnew\n", "a scriptlet failed here\n", "warning: %post\n"]
        {
            assert!(!has_failed_script(said), "{said}");
        }
    }
}
