//! Trains small Llama-2 models and exports them as files of llama2.c: the parts of the `trainer`
//! program.

/// As in std, but without its panic when nobody reads any more, as behind `| head`: a training goes
/// on.
macro_rules! println {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stdout(), $($part)*);
    }};
}
/// As [`println`].
macro_rules! eprintln {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

pub mod commands;
pub mod data;
pub mod io;
pub mod model;
pub mod report;
pub mod train;
