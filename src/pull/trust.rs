//! Enforces containers-policy.json(5).
//!
//! The image proxy of skopeo 1.9.3 (Debian 12) reads the policy and does not apply it: with a policy that rejects
//! everything it serves every image (seen). `skopeo copy` does apply it, before it reads
//! anything else, and says "Getting image source signatures" when the image has passed. So where the policy asks
//! for anything, a copy is started and stopped at that line. No line, no trust.

use super::caller::Caller;
use super::types::FetchOptions;
use crate::engine::cx::Cx;
use crate::model::image::{Digest, ImageRef};
use crate::model::{Context, Result};
use crate::sys::policy;
use crate::sys::skopeo::{self, from_skopeo};
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

/// What `skopeo copy` prints behind the policy check, before the first blob.
const PASSED: &str = "Getting image source signatures";

/// Fails with `SignatureRejected` if the policy does, for what an image that is no OS is by this digest.
pub async fn vouch(cx: &Cx, image: &ImageRef, digest: &Digest, opts: &FetchOptions) -> Result<()> {
    let caller = Caller::loose(cx, image, opts).await?;
    // Skopeo is killed when nobody waits for it any more.
    cx.or_cancelled(check(image, digest, opts, &caller)).await
}

/// Fails with `SignatureRejected` if the policy does, for what the image is by this digest.
pub(super) async fn check(
    image: &ImageRef,
    digest: &Digest,
    opts: &FetchOptions,
    caller: &Caller,
) -> Result<()> {
    let text = caller.policy(opts);
    let opts = caller.options(opts);
    if accepts_anything(&text) {
        return Ok(());
    }
    let doing = format!("checking {image} against the signature policy");
    let scratch = match &opts.tmp {
        Some(tmp) => tempfile::tempdir_in(tmp),
        None => tempfile::tempdir(),
    };
    let scratch = scratch.doing_with(|| doing.clone())?;
    caller.give(scratch.path()).doing_with(|| doing.clone())?;
    let mut policy = opts.policy.clone().unwrap_or_else(|| policy::SYSTEM.into());
    if let Some(text) = policy::by_digest(&text, image, digest) {
        policy = scratch.path().join("policy.json");
        std::fs::write(&policy, text).doing_with(|| doing.clone())?;
    }
    let mut command = Command::new("skopeo");
    command.args(skopeo::options(Some(&policy), opts.registries.as_deref(), opts.lookaside.as_deref()));
    if let Some(tmp) = &opts.tmp {
        command.arg("--tmpdir").arg(tmp);
    }
    command.arg("copy");
    match &opts.auth_file {
        Some(file) => command.arg("--src-authfile").arg(file),
        None => command.arg("--src-no-creds"),
    };
    if opts.insecure {
        command.arg("--src-tls-verify=false");
    }
    if let Some(dir) = &opts.cert_dir {
        let root = opts.config_root.as_deref().unwrap_or(Path::new("/"));
        command.arg("--src-cert-dir").arg(root.join(dir.trim_start_matches('/')));
    }
    command.arg(image.pinned(digest).to_string());
    command.arg(format!("dir:{}", scratch.path().join("image").display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    caller.prepare(command.as_std_mut());
    // In our own process group, unlike other children: the caller, or the end of a worker, sees to its end.
    let mut child = command.kill_on_drop(true).spawn().map_err(|e| from_skopeo(&doing, e))?;
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let mut stderr = child.stderr.take().expect("stderr is piped");
    while let Some(line) = lines.next_line().await.doing_with(|| doing.clone())? {
        if line.contains(PASSED) {
            child.kill().await.doing_with(|| doing.clone())?;
            return Ok(());
        }
    }
    let mut text = String::new();
    stderr.read_to_string(&mut text).await.doing_with(|| doing.clone())?;
    Err(from_skopeo(&doing, text.trim()))
}

/// Whether a policy has no requirement for any image.
fn accepts_anything(policy: &[u8]) -> bool {
    let Ok(serde_json::Value::Object(policy)) = serde_json::from_slice(policy) else { return false };
    let accepts = |list: &serde_json::Value| {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        !list.is_empty() && list.iter().all(|r| r["type"] == "insecureAcceptAnything")
    };
    let transports = policy.get("transports").and_then(|t| t.as_object());
    policy.get("default").is_some_and(accepts)
        && transports
            .into_iter()
            .flat_map(|t| t.values())
            .all(|scopes| scopes.as_object().is_some_and(|scopes| scopes.values().all(accepts)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_policy_without_any_requirement_is_not_asked() {
        for (text, expected) in [
            (r#"{"default":[{"type":"insecureAcceptAnything"}]}"#, true),
            (
                r#"{"default":[{"type":"insecureAcceptAnything"}],
                   "transports":{"docker-daemon":{"":[{"type":"insecureAcceptAnything"}]}}}"#,
                true,
            ),
            (r#"{"default":[{"type":"reject"}]}"#, false),
            (
                r#"{"default":[{"type":"insecureAcceptAnything"}],
                   "transports":{"docker":{"r.io/x":[{"type":"sigstoreSigned"}]}}}"#,
                false,
            ),
            (r#"{"default":[]}"#, false),
            ("{}", false),
            ("nonsense", false),
        ] {
            assert_eq!(accepts_anything(text.as_bytes()), expected, "{text}");
        }
    }
}
