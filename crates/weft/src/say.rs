//! What is printed. `println!` ends the process with a panic when nobody reads any more (`weft get … | head -1`); these
//! do not: a verb that changes something goes on to its end, one that only follows asks [`heard`] and ends.

use std::{
    fmt,
    io::{self, Write as _},
    sync::OnceLock,
};

/// The first failure to write to standard output; nothing is written after it.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// A line to standard output.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// A line to standard error, read or not.
macro_rules! tell {
    ($($text:tt)*) => { $crate::say::err(format_args!($($text)*)) };
}

pub(crate) use {say, tell};

/// To standard output, at once.
pub fn out(text: fmt::Arguments<'_>) {
    if FAILED.get().is_some() {
        return;
    }
    let mut out = io::stdout().lock();
    if let Err(e) = out.write_fmt(text).and_then(|()| out.flush()) {
        // of two failures the first is told
        let _ = FAILED.set(e);
    }
}

pub fn err(text: fmt::Arguments<'_>) {
    // there is nobody left to tell
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether standard output still takes what is written.
pub fn heard() -> bool {
    FAILED.get().is_none()
}

/// Why it does not, unless the reader just had enough.
pub fn failure() -> Option<&'static io::Error> {
    FAILED.get().filter(|e| e.kind() != io::ErrorKind::BrokenPipe)
}
