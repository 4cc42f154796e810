//! Which drop-in something in a deployment came from.

use super::deviation::{Asked, Effect, Outcome, is_dropin, unit_of};
use super::status::{Deployment, OwnedUnit, PackageRequest};

/// What is known about one thing: a path, a unit, a package, a user or a kernel argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is, with its name.
    pub what: String,
    /// The drop-ins; empty if it is no drop-in's.
    pub owners: Vec<String>,
    /// What became of it.
    pub how: String,
}

/// Everything in a deployment that has this name, and that a drop-in is about.
pub fn why(deployment: &Deployment, name: &str) -> Vec<Finding> {
    let derivation = &deployment.derivation;
    let path = name.strip_prefix("/usr/etc/").map_or_else(|| name.to_owned(), |rest| format!("/etc/{rest}"));
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { &path };
    let mut found = Vec::new();
    let one =
        |what: String, owner: &str, how: &str| Finding { what, owners: vec![owner.into()], how: how.into() };
    for file in &derivation.files {
        let effect = match file.effect {
            None => "declared",
            Some(Effect::Added) => "added",
            Some(Effect::Replaced) => "replaces what the image has",
            Some(Effect::Unchanged) => "redundant: the image has exactly this",
        };
        if file.path == path || unit_of(&file.path) == Some(name) {
            found.push(one(file.path.clone(), &file.owner, effect));
        }
    }
    for unit in &derivation.units {
        if unit.name == name || unit.links.iter().any(|link| link == path) {
            found.push(one(format!("unit {}", unit.name), &unit.owner, state(unit)));
        }
    }
    for user in derivation.users.iter().filter(|user| user.name == name) {
        found.push(one(format!("user {name}"), &user.owner, "declared"));
    }
    for group in derivation.groups.iter().filter(|group| group.name == name) {
        found.push(one(format!("group {name}"), &group.owner, "declared"));
    }
    for request in &derivation.packages {
        if request.request == name || package(&request.request) == name {
            let what = format!("{} {}", request.asked.words(), request.request);
            found.push(Finding { what, owners: request.owners.clone(), how: outcome(request) });
        }
    }
    let is_it = |arg: &str| arg == name || arg.split('=').next() == Some(name);
    for karg in derivation.kargs.iter().filter(|karg| is_it(&karg.arg)) {
        let what = format!("kernel argument {}", karg.arg);
        found.push(match karg.owner.as_str() {
            owner if is_dropin(owner) => one(what, owner, "appended"),
            "local" => Finding { what, owners: Vec::new(), how: "this host's own".into() },
            owner => Finding { what, owners: Vec::new(), how: format!("of the image ({owner})") },
        });
    }
    for karg in derivation.deleted_kargs.iter().filter(|karg| is_it(&karg.arg)) {
        found.push(one(format!("kernel argument {}", karg.arg), &karg.owner, "deleted"));
    }
    found
}

/// What became of a request, and what can be done about it.
pub fn outcome(request: &PackageRequest) -> String {
    let version = request.version.as_ref().map(|version| format!(", version {version}")).unwrap_or_default();
    match (request.outcome, request.asked) {
        (Outcome::Applied, _) => format!("applied{version}"),
        (Outcome::Redundant, Asked::Install) => "redundant: the image has it, the request can go".into(),
        (Outcome::Redundant, Asked::Remove) => {
            "redundant: the image does not have it, the request can go".into()
        }
        (Outcome::Redundant, Asked::Replace) => {
            "redundant: the image has this version now, the hotfix can go".into()
        }
        (Outcome::Redundant, Asked::Extension | Asked::Layer) => "redundant: nothing of it is used".into(),
    }
}

fn state(unit: &OwnedUnit) -> &'static str {
    match (unit.mask, unit.enabled) {
        (true, _) => "masked",
        (false, Some(true)) => "enabled",
        (false, Some(false)) => "disabled",
        (false, None) => "declared",
    }
}

/// The name of a package that is requested.
fn package(request: &str) -> &str {
    match request.split_once(['=', ':']) {
        Some((name, _)) => name,
        None => super::edit::package_of(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_drop_in_brought_is_found_by_its_name() {
        let golden = include_str!("../cli/render/status/golden/status.json");
        let status: super::super::status::Status = serde_json::from_str(golden).unwrap();
        let staged = status.next().unwrap();
        for (name, findings) in [
            ("/etc/agent.conf", vec!["/etc/agent.conf: added (50-agent.yaml)"]),
            ("/usr/etc/agent.conf", vec!["/etc/agent.conf: added (50-agent.yaml)"]),
            ("/etc/agent", vec![]),
            ("agents", vec!["group agents: declared (50-agent.yaml)"]),
            (
                "agent.service",
                vec![
                    "/etc/systemd/system/agent.service: added (50-agent.yaml)",
                    "unit agent.service: enabled (50-agent.yaml)",
                ],
            ),
            (
                "/etc/systemd/system/multi-user.target.wants/agent.service",
                vec!["unit agent.service: enabled (50-agent.yaml)"],
            ),
            (
                "agent",
                vec![
                    "user agent: declared (50-agent.yaml)",
                    "package agent: applied, version 1.0 (50-agent.yaml, 60-bond.yaml)",
                ],
            ),
            (
                "kernel",
                vec![
                    "replacement of package kernel-6.9.1-2: redundant: the image has this version now, the hotfix can go (60-bond.yaml)",
                ],
            ),
            ("moby-engine", vec!["removal of package moby-engine: applied (60-bond.yaml)"]),
            ("nosmt", vec!["kernel argument nosmt: appended (50-agent.yaml)"]),
            ("quiet", vec!["kernel argument quiet: deleted (60-bond.yaml)"]),
            ("rw", vec!["kernel argument rw: this host's own ()"]),
        ] {
            let found: Vec<String> = why(staged, name)
                .iter()
                .map(|f| format!("{}: {} ({})", f.what, f.how, f.owners.join(", ")))
                .collect();
            assert_eq!(found, findings, "{name}");
        }
    }
}
