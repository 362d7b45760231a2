//! The program: arguments, the command that they name, and the allocator. See the library for
//! everything else.
//!
//! The one thing to know: how the allocator is tuned stands in `.cargo/config.toml`, for only a build
//! can say it without unsafe code.

use std::process::ExitCode;

/// An event is allocated by one thread and freed by another. The C library's allocator was measured to
/// keep up to 68 MiB for that while it drained a backlog, and to cost a tenth more for each event.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    astro_relay::cli::main()
}
