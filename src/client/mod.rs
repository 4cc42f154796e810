//! The bus client that the command line is built on.
