//! Has the program's relocations packed, where the C library can read them so.
//!
//! They are a megabyte that is read once, at the start, and stays in memory; packed they are ten
//! kilobytes. glibc reads that from 2.36 on (2022), and one before it refuses such a program with a word
//! about `GLIBC_ABI_DT_RELR`. So it is done only where it is built for this very system.

use std::{env, process::Command};

/// The first glibc that knows `DT_RELR`.
const SINCE: (u32, u32) = (2, 36);

#[expect(clippy::disallowed_methods, reason = "the environment is how cargo tells a build script")]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let told = |name| env::var(name).unwrap_or_default();
    let ours = told("HOST") == told("TARGET");
    let gnu = told("CARGO_CFG_TARGET_OS") == "linux" && told("CARGO_CFG_TARGET_ENV") == "gnu";
    if ours && gnu && glibc().is_some_and(|version| version >= SINCE) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// This system's glibc; `None`: it does not say.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
