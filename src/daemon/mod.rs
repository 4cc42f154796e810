//! Start, recover, serve, drain, idle exit.
