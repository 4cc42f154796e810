//! Kubernetes YAML that a quadlet names.
#![no_main]

use osctl_fuzz::model::quadlet::Kubernetes;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(error) = Kubernetes::parse(text, "/fuzz.yaml") {
        osctl_fuzz::located(&error);
        assert!(error.details.contains_key("line"), "{error}");
        assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
    }
});
