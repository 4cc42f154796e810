//! What foreign tools think of the result.
