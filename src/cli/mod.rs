//! Arguments to requests, and rendering. The only place that prints.
