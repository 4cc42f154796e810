//! Thin D-Bus adapters over the engine. No decisions.
