//! The images of a Kubernetes YAML file, as `podman kube play` would want them.
//!
//! Read are several documents, lists of resources, anchors and merge keys. A kind that podman does not play is skipped,
//! as podman does.

use crate::model::bound::registry_reference;
use crate::model::dropin::yaml::{Location, Node, Value, documents, located};
use crate::model::image::ImageRef;
use crate::model::text::one_line;
use crate::model::{Error, ErrorKind, Result};

/// What a file asks for.
#[derive(Debug, Default)]
pub struct Kubernetes {
    /// The images, in the order of the file; one that is named twice is there twice.
    pub images: Vec<KubeImage>,
    /// What podman would not play, or would ask a registry for.
    pub warnings: Vec<Error>,
}

/// An image of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeImage {
    /// The image; always in a registry.
    pub reference: ImageRef,
    /// The line, from one.
    pub line: usize,
    /// `spec.containers[0].image`
    pub key: String,
    /// The directory, relative to the working directory of podman, from which podman builds the image if there is a
    /// `Containerfile` or `Dockerfile` in it.
    pub build_directory: String,
}

/// Kinds that podman creates without running anything.
const PASSIVE: [&str; 3] = ["ConfigMap", "PersistentVolumeClaim", "Secret"];
/// Podman mounts these images into one container; `;` between them.
const MOUNTED: &str = "io.podman.annotations.kube.image.volumes.mount/";

impl Kubernetes {
    /// Reads a file; `file` is its path, for messages. Every error has file, line and column.
    pub fn parse(text: &str, file: &str) -> Result<Kubernetes> {
        let mut found = Reader { file, result: Kubernetes::default(), kinds: 0 };
        let documents = documents(file, text)?;
        for document in documents.iter().filter(|d| !d.is_null()) {
            found.resource(document, "", 0)?;
        }
        match found.kinds {
            0 => {
                let start = documents.first().map_or(Location { line: 1, column: 1 }, |d| d.at);
                Err(found
                    .refuse(start, "", "there is no resource that podman can play")
                    .hint("podman kube play runs Pod, Deployment, DaemonSet and Job"))
            }
            _ => Ok(found.result),
        }
    }
}

struct Reader<'f> {
    file: &'f str,
    result: Kubernetes,
    kinds: usize,
}

impl Reader<'_> {
    fn refuse(&self, at: Location, key: &str, message: &str) -> Error {
        located(ErrorKind::InvalidDropIn, self.file, Some(at), key, message)
    }

    fn resource(&mut self, resource: &Node, key: &str, depth: usize) -> Result<()> {
        let Value::Map(_) = &resource.value else {
            return Err(self.refuse(resource.at, key, "expected a Kubernetes resource, which is a map"));
        };
        let kind = get(resource, "kind").and_then(text).unwrap_or_default();
        let pod = match kind {
            // Lists of lists are nothing that Kubernetes writes.
            "List" if depth == 0 => {
                for (i, item) in items(get(resource, "items")).iter().enumerate() {
                    self.resource(item, &format!("items[{i}]"), depth + 1)?;
                }
                return Ok(());
            }
            "Pod" => Some((resource, key.to_owned())),
            "Deployment" | "DaemonSet" | "Job" => template(resource, key),
            "CronJob" => {
                down(resource, key, &["spec", "jobTemplate"]).and_then(|(job, key)| template(job, &key))
            }
            "" => return Err(self.refuse(resource.at, &join(key, "kind"), "a resource has no kind")),
            passive if PASSIVE.contains(&passive) => {
                self.kinds += 1;
                return self.volume(resource, key, passive);
            }
            other => {
                let at = get(resource, "kind").map_or(resource.at, |n| n.at);
                let message = format!("podman does not play kind {other}, so nothing of it is bound");
                self.result.warnings.push(self.refuse(at, &join(key, "kind"), &message));
                return Ok(());
            }
        };
        self.kinds += 1;
        let Some((pod, key)) = pod else {
            return Err(self.refuse(resource.at, key, &format!("this {kind} has no pod template")));
        };
        self.pod(pod, &key)
    }

    fn pod(&mut self, pod: &Node, key: &str) -> Result<()> {
        let Some((spec, spec_key)) = down(pod, key, &["spec"]) else {
            return Err(self.refuse(pod.at, key, "a pod has no spec"));
        };
        for list in ["initContainers", "containers"] {
            for (i, container) in items(get(spec, list)).iter().enumerate() {
                let key = format!("{spec_key}.{list}[{i}]");
                self.container(container, &key)?;
            }
        }
        for (i, volume) in items(get(spec, "volumes")).iter().enumerate() {
            if let Some(image) = get(volume, "image").and_then(|i| get(i, "reference")) {
                self.image(image, &format!("{spec_key}.volumes[{i}].image.reference"))?;
            }
        }
        for (name, value) in annotations(pod) {
            if name.starts_with(MOUNTED) {
                for image in text(value).unwrap_or_default().split(';').filter(|i| !i.is_empty()) {
                    self.reference(
                        image,
                        value.at,
                        &join(key, &format!("metadata.annotations.{}", one_line(name))),
                    )?;
                }
            }
        }
        Ok(())
    }

    fn container(&mut self, container: &Node, key: &str) -> Result<()> {
        let image = get(container, "image").filter(|i| !i.is_null());
        let Some(image) = image else {
            return Err(self.refuse(container.at, &join(key, "image"), "a container has no image"));
        };
        self.image(image, &join(key, "image"))?;
        let policy = get(container, "imagePullPolicy").filter(|p| !p.is_null());
        let asks = policy.and_then(text).is_some_and(|p| p.eq_ignore_ascii_case("Always"));
        if let Some(policy) = policy.filter(|_| asks) {
            let error = self.refuse(
                policy.at,
                &join(key, "imagePullPolicy"),
                "podman asks the registry at each start",
            );
            self.result.warnings.push(error.hint("write IfNotPresent, so that it starts without a network"));
        }
        Ok(())
    }

    /// The image of a volume claim whose driver is `image`.
    fn volume(&mut self, claim: &Node, key: &str, kind: &str) -> Result<()> {
        let find = |name: &str| annotations(claim).find(|(n, _)| *n == name).map(|(_, value)| value);
        let driver = find("volume.podman.io/driver").and_then(text);
        match find("volume.podman.io/image")
            .filter(|_| kind == "PersistentVolumeClaim" && driver == Some("image"))
        {
            Some(image) => self.image(image, &join(key, "metadata.annotations.volume.podman.io/image")),
            None => Ok(()),
        }
    }

    fn image(&mut self, node: &Node, key: &str) -> Result<()> {
        let Some(image) = text(node) else {
            return Err(self.refuse(node.at, key, "expected text"));
        };
        self.reference(image, node.at, key)
    }

    fn reference(&mut self, image: &str, at: Location, key: &str) -> Result<()> {
        let reference =
            registry_reference(image).map_err(|why| self.refuse(at, key, &format!("image {why}")))?;
        let name = image.split(':').next().unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or_default();
        let build_directory = name.split('@').next().unwrap_or_default().to_owned();
        self.result.images.push(KubeImage { reference, line: at.line, key: key.to_owned(), build_directory });
        Ok(())
    }
}

fn join(key: &str, name: &str) -> String {
    if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }
}

/// The pod template of a workload.
fn template<'n, 'a>(resource: &'n Node<'a>, key: &str) -> Option<(&'n Node<'a>, String)> {
    down(resource, key, &["spec", "template"])
}

fn down<'n, 'a>(mut node: &'n Node<'a>, key: &str, path: &[&str]) -> Option<(&'n Node<'a>, String)> {
    let mut key = key.to_owned();
    for name in path {
        node = get(node, name).filter(|n| matches!(n.value, Value::Map(_)))?;
        key = join(&key, name);
    }
    Some((node, key))
}

/// The value of a key: as it is written, in any case (Go's decoder takes both), or from a merge key.
fn get<'n, 'a>(node: &'n Node<'a>, name: &str) -> Option<&'n Node<'a>> {
    let Value::Map(entries) = &node.value else { return None };
    let exact = entries.iter().find(|(key, _)| key.text == name);
    let any = || entries.iter().find(|(key, _)| key.text.eq_ignore_ascii_case(name));
    if let Some((_, value)) = exact.or_else(any) {
        return Some(value);
    }
    let (_, merged) = entries.iter().find(|(key, _)| key.text == "<<")?;
    match &merged.value {
        Value::List(maps) => maps.iter().find_map(|map| get(map, name)),
        Value::Map(_) => get(merged, name),
        Value::Scalar { .. } => None,
    }
}

fn items<'n, 'a>(node: Option<&'n Node<'a>>) -> &'n [Node<'a>] {
    match node.map(|n| &n.value) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

fn annotations<'n, 'a>(resource: &'n Node<'a>) -> impl Iterator<Item = (&'n str, &'n Node<'a>)> {
    let entries: &[_] = match get(resource, "metadata").and_then(|m| get(m, "annotations")).map(|n| &n.value)
    {
        Some(Value::Map(entries)) => entries,
        _ => &[],
    };
    entries.iter().map(|(key, value)| (&*key.text, value))
}

fn text<'n>(node: &'n Node) -> Option<&'n str> {
    match &node.value {
        Value::Scalar { text, .. } if !node.is_null() => Some(text),
        _ => None,
    }
}
