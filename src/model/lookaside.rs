//! Where simple signatures of images lie: containers-registries.d(5), and the layout of a lookaside storage
//! (containers/image, docs/signature-protocols.md).

use super::Result;
use super::dropin::yaml::{Node, Value, documents};
use super::image::Digest;

/// Where they lie if nobody says so.
const DEFAULT: &str = "file:///var/lib/containers/sigstore";

/// A file of a `registries.d`: its name, and what it says.
pub type File = (String, String);

/// The URL below which the signatures of a repository lie. `repository` is the whole name, with the registry's.
pub fn base(files: &[File], repository: &str) -> Result<String> {
    let mut roots = Vec::new();
    for (name, text) in files {
        roots.extend(documents(name, text)?);
    }
    let mut scopes = vec![repository];
    while let Some((shorter, _)) = scopes.last().and_then(|scope| scope.rsplit_once('/')) {
        scopes.push(shorter);
    }
    let of = |scope: &str| {
        roots.iter().filter_map(|root| entry(root, "docker")).find_map(|docker| url(entry(docker, scope)?))
    };
    let found = scopes.into_iter().find_map(of);
    let default = || roots.iter().filter_map(|root| entry(root, "default-docker")).find_map(url);
    Ok(found.or_else(default).unwrap_or_else(|| DEFAULT.to_owned()))
}

/// The URL that a scope has. `sigstore` is how the key was called before.
fn url(scope: &Node<'_>) -> Option<String> {
    ["lookaside", "sigstore"].iter().find_map(|key| match &entry(scope, key)?.value {
        Value::Scalar { text, .. } if !text.is_empty() => Some(text.trim_end_matches('/').to_owned()),
        _ => None,
    })
}

fn entry<'n>(node: &'n Node<'_>, key: &str) -> Option<&'n Node<'n>> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node),
        _ => None,
    }
}

/// What stands behind the URL for the signature with this number, the first of which is 1.
pub fn path(repository: &str, digest: &Digest, number: usize) -> String {
    let within = repository.split_once('/').map_or(repository, |(_, path)| path);
    format!("{within}@sha256={}/signature-{number}", digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_scope_that_says_where_counts() {
        let files = [
            ("a.yaml".to_owned(), "default-docker:\n  lookaside: https://all.io/s/\n".to_owned()),
            (
                "b.yaml".to_owned(),
                "docker:\n  r.io: {sigstore: 'file:///r'}\n  r.io/me: {use-sigstore-attachments: true}\n  \
                 r.io/me/os: {lookaside: https://me.io, sigstore: https://old.io}\n"
                    .to_owned(),
            ),
        ];
        for (repository, expected) in [
            ("r.io/me/os", "https://me.io"),
            ("r.io/me/app", "file:///r"),
            ("r.io/os", "file:///r"),
            ("q.io/os", "https://all.io/s"),
        ] {
            assert_eq!(base(&files, repository).unwrap(), expected, "{repository}");
        }
        assert_eq!(base(&files[1..], "q.io/os").unwrap(), DEFAULT);
        assert_eq!(base(&[], "q.io/os").unwrap(), DEFAULT);
        assert!(base(&[("c.yaml".into(), "docker: [".into())], "q.io/os").is_err());
    }

    #[test]
    fn signatures_lie_below_the_path_without_the_registry() {
        let digest = Digest::of(b"x");
        assert_eq!(path("r.io:5000/me/os", &digest, 1), format!("me/os@sha256={}/signature-1", digest.hex()));
    }
}
