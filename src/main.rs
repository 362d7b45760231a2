//! The program: arguments, and the command that they name. See the library for everything else.

use std::process::ExitCode;

fn main() -> ExitCode {
    astro_relay::cli::main()
}
