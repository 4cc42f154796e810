//! One image, opened through skopeo's image proxy.

use super::caller::Caller;
use super::types::FetchOptions;
use crate::model::image::{Digest, ImageRef};
use crate::model::{Error, ErrorKind, Result};
use crate::sys::skopeo::{self, from_skopeo};
use ostree_ext::containers_image_proxy::{ImageProxy, ImageProxyConfig, OpenedImage};
use ostree_ext::oci_spec::image as oci;
use std::ffi::OsStr;
use std::future::Future;
use std::process::Command;
use tokio::io::{AsyncBufRead, AsyncReadExt};

/// Configurations are small; a registry must not fill our memory.
const MAX_CONFIG: u64 = 8 << 20;

/// How skopeo is run for these options.
///
/// The command is set explicitly: the proxy's default binds skopeo to the life of a thread of ours, and
/// ostree-ext's replaces the user. Skopeo ends when its socket closes, as the
/// caller says, and with our process group.
fn proxy_config(opts: &FetchOptions, caller: &Caller) -> ImageProxyConfig {
    let opts = caller.options(opts);
    let mut skopeo = Command::new("skopeo");
    skopeo.args(skopeo::options(
        opts.policy.as_deref(),
        opts.registries.as_deref(),
        opts.lookaside.as_deref(),
    ));
    skopeo.args(opts.tmp.iter().flat_map(|tmp| [OsStr::new("--tmpdir"), tmp.as_os_str()]));
    caller.prepare(&mut skopeo);
    ImageProxyConfig {
        authfile: opts.auth_file.clone(),
        auth_anonymous: opts.auth_file.is_none(),
        insecure_skip_tls_verification: Some(opts.insecure),
        skopeo_cmd: Some(skopeo),
        ..Default::default()
    }
}

/// An opened image.
#[derive(Debug)]
pub(super) struct Source {
    proxy: ImageProxy,
    opened: OpenedImage,
    doing: String,
}

impl Source {
    /// Opens the image: the policy is checked here, the manifest read.
    pub(super) async fn open(image: &ImageRef, opts: &FetchOptions, caller: &Caller) -> Result<Source> {
        Ok(Self::open_beside(image, opts, caller, async {}).await?.0)
    }

    /// As [`Source::open`]; something else is done while skopeo waits for the registry.
    pub(super) async fn open_beside<F: Future>(
        image: &ImageRef,
        opts: &FetchOptions,
        caller: &Caller,
        beside: F,
    ) -> Result<(Source, F::Output)> {
        let doing = format!("reading {image}");
        let config = proxy_config(opts, caller);
        let proxy = ImageProxy::new_with_config(config).await.map_err(|e| from_skopeo(&doing, e))?;
        let name = image.to_string();
        let (opened, done) = tokio::join!(proxy.open_image(&name), beside);
        let opened = opened.map_err(|e| from_skopeo(&doing, e))?;
        Ok((Source { proxy, opened, doing }, done))
    }

    /// The digest of this architecture's manifest, and its text in OCI format.
    ///
    /// Skopeo chooses the entry of a manifest list itself, and says the digest of what it chose (checked with
    /// skopeo 1.9.3 by a test). It converts Docker manifests to OCI and says the digest from before.
    pub(super) async fn manifest(&self) -> Result<(Digest, String)> {
        let (digest, raw) =
            self.proxy.fetch_manifest_raw_oci(&self.opened).await.map_err(|e| from_skopeo(&self.doing, e))?;
        let unsupported = |why: &str| {
            Error::new(
                ErrorKind::Unsupported,
                format!("{}: {why}; the running system is unchanged", self.doing),
            )
        };
        let text = String::from_utf8(raw).map_err(|e| unsupported("the manifest is not UTF-8").source(e))?;
        let parsed = digest
            .parse::<Digest>()
            .map_err(|e| unsupported(&format!("its digest is {digest}, which is not a SHA-256")).source(e))?;
        Ok((parsed, text))
    }

    /// The configuration as skopeo renders it.
    pub(super) async fn rendered_config(&self) -> Result<Vec<u8>> {
        self.proxy.fetch_config_raw(&self.opened).await.map_err(|e| from_skopeo(&self.doing, e))
    }

    /// A small blob as a whole.
    pub(super) async fn small_blob(&self, descriptor: &oci::Descriptor) -> Result<Vec<u8>> {
        let too_large = || {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{}: the configuration is larger than {MAX_CONFIG} bytes; the running system is unchanged",
                    self.doing
                ),
            )
        };
        if descriptor.size() > MAX_CONFIG {
            return Err(too_large());
        }
        let (blob, driver) = self.blob(descriptor.digest(), descriptor.size()).await?;
        // The pipe ends with the reader: skopeo waits for room in it as long as it is open, and the driver for skopeo.
        let reading = async move {
            let mut bytes = Vec::new();
            blob.take(MAX_CONFIG + 1).read_to_end(&mut bytes).await.map(|_| bytes)
        };
        let (read, driven) = tokio::join!(reading, driver);
        let bytes = read.map_err(|e| from_skopeo(&self.doing, e))?;
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(too_large());
        }
        driven?;
        Ok(bytes)
    }

    /// Starts the transfer of a blob. The second value must be awaited beside reading the first.
    pub(super) async fn blob(
        &self,
        digest: &oci::Digest,
        size: u64,
    ) -> Result<(impl AsyncBufRead + Send + Unpin + use<>, impl Future<Output = Result<()>> + '_)> {
        let doing = format!("{}, blob {digest}", self.doing);
        let (blob, driver) =
            self.proxy.get_blob(&self.opened, digest, size).await.map_err(|e| from_skopeo(&doing, e))?;
        Ok((blob, async move { driver.await.map_err(|e| from_skopeo(&doing, e)) }))
    }
}
