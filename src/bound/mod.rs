//! Bound images: discovered in a commit's tree, pulled by digest, recorded per deployment.
