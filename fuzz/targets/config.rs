//! The daemon's configuration.
#![no_main]

use osctl_fuzz::model::config::Config;

libfuzzer_sys::fuzz_target!(|text: &str| match Config::parse(text, "/fuzz.toml") {
    Ok(config) => assert_eq!(config.clone().over(Config::default()), config),
    Err(error) => osctl_fuzz::located(&error),
});
