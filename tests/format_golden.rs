//! x
mod format_decoder;
