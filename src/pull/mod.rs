//! From an image reference to commits in the repository.
