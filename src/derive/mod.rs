//! From drop-ins to a commit: decode, apply, compare.
