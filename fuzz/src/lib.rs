//! The parsers of osctl, for the fuzz targets beside this. See HACKING.md.

// The room itself, not the crate: see Cargo.toml. What only other rooms call looks unused.
#[allow(dead_code)]
#[path = "../../src/model/mod.rs"]
pub mod model;

use model::dropin::{Beside, Leaf, LeafKind, Local, Text, compile};
use model::{Error, Result};

/// Every refusal names the file.
pub fn located(error: &Error) {
    assert!(error.details.contains_key("file"), "{error}");
}

/// Whatever file is asked for is there, and holds its own name.
struct Files;

impl Beside for Files {
    fn file(&self, name: &str) -> Result<Local> {
        Ok(Local { bytes: name.as_bytes().to_vec(), private: false })
    }

    fn tree(&self, name: &str) -> Result<Vec<Leaf>> {
        let kind = LeafKind::File { contents: self.file(name)?, executable: true };
        Ok(vec![Leaf { path: "a".to_owned(), kind }])
    }
}

/// Compiles one declaration twice: the same text says the same, and a refusal says where, on one line.
pub fn declaration(name: &str, bytes: &[u8]) {
    let text = Text { name: name.to_owned(), path: "/fuzz".to_owned(), bytes: bytes.to_vec() };
    match compile(&[(text.clone(), &Files)]) {
        Ok(manifest) => {
            let again = compile(&[(text, &Files)]).expect("it was good before");
            assert_eq!(manifest.input_digest(), again.input_digest());
            assert!(manifest.only(|_| false).is_empty());
        }
        Err(error) => {
            located(&error);
            assert!(error.details.contains_key("line"), "{error}");
            assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
        }
    }
}
