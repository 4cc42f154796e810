//! Where images come from, and what goes wrong there.
