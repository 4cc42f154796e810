//! The state and the jobs, for people.

use super::value;
use crate::model::deviation::{self, Asked};
use crate::model::job::{Job, State};
use crate::model::status::{Deployment, PackageRequest, Status};
use crate::model::time::utc;
use crate::model::why::{self, Finding};

/// The state.
pub fn human(status: &Status, verbose: bool) -> String {
    let mut text = format!("State: {}\n", status.state);
    for reason in &status.reasons {
        text.push_str(&format!("  {}\n", value(reason)));
    }
    for job in status.jobs.iter().rev().filter(|j| !j.state.is_final()) {
        text.push_str(&format!("Job: {} {}", value(&job.kind), job.state.name()));
        if job.state != State::Queued {
            text.push_str(&format!(", {} ({:.0} %)", value(&job.step), job.progress * 100.0));
        }
        text.push_str(&format!(", {}\n", job.id));
    }
    text.push_str("Deployments:\n");
    if status.deployments.is_empty() {
        text.push_str("  none\n");
    }
    for (i, deployment) in status.deployments.iter().enumerate() {
        if i > 0 {
            text.push('\n');
        }
        one(&mut text, status, deployment, verbose);
    }
    footer(&mut text, status, verbose);
    text
}

fn row(text: &mut String, label: &str, shown: &str) {
    text.push_str(&format!("{label:>18}: {}\n", value(shown)));
}

/// A list, one line each, the label on the first.
fn rows<T: AsRef<str>>(text: &mut String, label: &str, values: impl IntoIterator<Item = T>) {
    for (i, shown) in values.into_iter().enumerate() {
        if i == 0 {
            row(text, label, shown.as_ref());
        } else {
            text.push_str(&format!("{:20}{}\n", "", value(shown.as_ref())));
        }
    }
}

fn one(text: &mut String, status: &Status, d: &Deployment, verbose: bool) {
    let mut marks = Vec::new();
    for (is, mark) in [
        (d.booted, "booted"),
        (d.staged, "staged"),
        (status.rollback.as_ref() == Some(&d.id), "rollback"),
        (d.pinned, "pinned"),
    ] {
        if is {
            marks.push(mark);
        }
    }
    // On a sysroot that is not booted nothing else says which one is next.
    if d.default && status.booted.is_none() {
        marks.insert(0, "default");
    }
    let dot = if d.booted { "●" } else { " " };
    let name = d.image.as_ref().map_or_else(|| format!("{} (no image)", d.stateroot), ToString::to_string);
    let marks = if marks.is_empty() { String::new() } else { format!(" ({})", marks.join(", ")) };
    text.push_str(&format!("{dot} {}{marks}\n", value(&name)));

    if let Some(digest) = &d.digest {
        row(text, "Digest", digest.as_str());
    }
    let version = if d.version.is_empty() { "unknown" } else { &d.version };
    row(text, "Version", &format!("{version} ({})", utc(d.timestamp)));
    if let Some(verification) = &d.verification {
        row(text, "Verified", &verification.describe());
    }
    if verbose {
        row(text, "Id", &d.id);
        row(text, "Commit", &d.checksum);
        if d.base_checksum != d.checksum && !d.base_checksum.is_empty() {
            row(text, "Base commit", &d.base_checksum);
        }
    }
    let derivation = &d.derivation;
    let names: Vec<&str> = derivation.drop_ins.iter().map(|s| s.name.as_str()).collect();
    if !names.is_empty() {
        row(text, "Drop-ins", &names.join(", "));
    }
    if let Some(line) = deviation::line(derivation) {
        row(text, "Deviates", &line);
    }
    if verbose {
        if let Some(digest) = &derivation.input_digest {
            row(text, "Input digest", digest.as_str());
        }
        rows(text, "Packages", derivation.packages.iter().map(package));
        rows(text, "Files", derivation.files.iter().map(|f| format!("{} ({})", f.path, f.owner)));
        rows(text, "Kernel arguments", derivation.kargs.iter().map(|k| format!("{} ({})", k.arg, k.owner)));
    } else {
        let ours = derivation.kargs.iter().filter(|k| deviation::is_dropin(&k.owner));
        let ours: Vec<&str> = ours.map(|k| k.arg.as_str()).collect();
        if !ours.is_empty() {
            row(text, "Kernel arguments", &ours.join(" "));
        }
    }
    rows(text, "Kept local", &derivation.kept_local);
    rows(
        text,
        "Bound images",
        d.bound_images.images.iter().map(|b| format!("{} {}", b.spec.reference, b.digest)),
    );
    if verbose {
        rows(text, "Labels", d.labels.iter().map(|(k, v)| format!("{k}={v}")));
    }
    if !d.incompatible.is_empty() {
        row(text, "Not managed", &format!("the origin has {}", d.incompatible.join(", ")));
    }
}

fn footer(text: &mut String, status: &Status, verbose: bool) {
    if !status.pending_changes.is_empty() {
        text.push_str("Pending changes (osctl reconcile applies them):\n");
        for change in &status.pending_changes {
            text.push_str(&format!("  {}\n", value(change)));
        }
    }
    if verbose && !status.unmet.is_empty() {
        text.push_str("Requests that are not met:\n");
        for unmet in &status.unmet {
            let why =
                status.why_unmet(unmet).map(|why| format!("; the last job said: {why}")).unwrap_or_default();
            let line = format!("{} {} ({}){why}", unmet.asked.words(), unmet.request, unmet.owner);
            text.push_str(&format!("  {}\n", value(&line)));
        }
    }
    if let Some(outcome) = status.last_outcome.as_ref().filter(|o| verbose || !o.ok || !o.shadowed.is_empty())
    {
        let how = if outcome.ok { "ok".to_owned() } else { format!("failed in {}", outcome.phase) };
        text.push_str(&format!("Last update: {}: {}\n", value(&how), value(&outcome.message)));
    }
    for rejected in &status.rejected {
        let digest = rejected.digest.as_ref().map_or("unknown image", |d| d.as_str());
        text.push_str(&format!("Rejected: {digest}: {}\n", value(&rejected.reason)));
    }
    if !status.rivals.is_empty() {
        text.push_str(&format!("Other updaters are enabled: {}\n", value(&status.rivals.join(", "))));
    }
    // Only the latest: `osctl jobs` has the others.
    let last = status.jobs.iter().find(|j| j.state.is_final());
    if let Some(job) = last.filter(|j| verbose || j.state != State::Succeeded) {
        text.push_str(&format!(
            "Last job: {} {} {}: {}\n",
            value(&job.kind),
            job.state.name(),
            utc(job.finished),
            value(end(job))
        ));
    }
    if status.reboot_needed() {
        text.push_str("The next boot runs another deployment: systemctl reboot\n");
    }
}

fn end(job: &Job) -> &str {
    let failure = job.failure.as_ref().map(|f| f.message.as_str());
    failure.or(job.result.as_ref().map(|r| r.summary.as_str())).unwrap_or_default()
}

fn package(request: &PackageRequest) -> String {
    let what = match request.asked {
        Asked::Install => request.request.clone(),
        Asked::Remove | Asked::Replace | Asked::Extension | Asked::Layer => {
            format!("{} {}", request.asked.words(), request.request)
        }
    };
    format!("{what}: {} ({})", why::outcome(request), request.owners.join(", "))
}

/// What is known about where something came from.
pub fn findings(found: &[Finding]) -> String {
    let owners =
        |f: &Finding| if f.owners.is_empty() { String::new() } else { format!(" ({})", f.owners.join(", ")) };
    found.iter().map(|f| format!("{}\n", value(&format!("{}: {}{}", f.what, f.how, owners(f))))).collect()
}

/// The kernel arguments of a deployment: a command line, or one a line with who put it there.
pub fn kargs(deployment: &Deployment, owners: bool) -> String {
    let all = &deployment.derivation.kargs;
    if owners {
        return all.iter().map(|k| format!("{} ({})\n", value(&k.arg), value(&k.owner))).collect();
    }
    let args: Vec<_> = all.iter().map(|k| value(&k.arg)).collect();
    format!("{}\n", args.join(" "))
}

/// A table of jobs, newest first.
pub fn jobs(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "No jobs.\n".into();
    }
    let mut text = format!("{:36}  {:9}  {:11}  {:23}  RESULT\n", "JOB", "KIND", "STATE", "CREATED");
    for job in jobs {
        let result = if job.state.is_final() {
            value(end(job)).into_owned()
        } else {
            format!("{:.0} %", job.progress * 100.0)
        };
        text.push_str(&format!(
            "{:36}  {:9}  {:11}  {:23}  {result}\n",
            value(&job.id),
            value(&job.kind),
            job.state.name(),
            utc(job.created)
        ));
    }
    text
}

#[cfg(test)]
mod tests;
