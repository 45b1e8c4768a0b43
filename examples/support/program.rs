//! What the programs here have in common: how they read arguments, print, and end.
//!
//! Exit status 0 means done, 2 bad usage or bad input with one line on standard error.

use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

/// Reads the arguments and runs `body`, which writes its output to the writer it gets.
///
/// A reader that closes standard output early ends the program without a complaint.
pub(crate) fn run<Arguments: Parser>(
    body: impl FnOnce(Arguments, &mut dyn Write) -> Result<(), Box<dyn Error>>,
) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if is_answer(error.kind()) => error.exit(),
        Err(error) => return refuse(&usage_line(&error.render().to_string())),
    };
    let mut out = BufWriter::new(Named(io::stdout().lock()));
    let result = body(arguments, &mut out).and_then(|()| Ok(out.flush()?));
    // What is left in the buffer was refused once; dropping the writer would try again.
    let (_, _) = out.into_parts();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => refuse(&one_line(error.as_ref())),
    }
}

/// Standard output, whose errors say so.
struct Named<W>(W);

impl<W: Write> Write for Named<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

fn named(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("standard output: {error}"))
}

/// Whether clap's "error" is what the user asked for.
fn is_answer(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

fn refuse(line: &str) -> ExitCode {
    tell(&format!("error: {line}"));
    ExitCode::from(2)
}

/// A line on standard error.
pub(crate) fn tell(line: &str) {
    // Nobody is left to tell if it is closed.
    let _ = writeln!(io::stderr(), "{line}");
}

/// The first paragraph of clap's message: the rest is tips and usage.
fn usage_line(message: &str) -> String {
    let lines = message.lines().map(str::trim);
    let told: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
    let told = told.join(" ");
    told.strip_prefix("error: ").unwrap_or(&told).to_owned()
}

/// The error and everything that caused it, in one line.
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line.replace(char::is_control, " ")
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let io = error.downcast_ref::<io::Error>();
    let json = error.downcast_ref::<serde_json::Error>();
    let kind = io
        .map(io::Error::kind)
        .or_else(|| json.and_then(serde_json::Error::io_error_kind));
    kind == Some(io::ErrorKind::BrokenPipe)
}
