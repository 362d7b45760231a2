//! A configuration: the file, then variables of the environment behind a zero byte, one a line.
//!
//! Beyond not panicking: what was loaded differs in nothing from itself, and every problem can be told.
#![no_main]

use astro_relay::{config::difference::difference, loading::Sources};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(input) = std::str::from_utf8(input) else { return };
    let (text, env) = input.split_once('\0').unwrap_or((input, ""));
    let env = env.lines().filter_map(|line| line.split_once('='));
    let sources = Sources {
        text: Some(text.to_owned()),
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        // The files that it names are not the fuzzer's business.
        resolve_secrets: false,
        ..Sources::default()
    };
    match astro_relay::loading::load(&sources) {
        Ok(loaded) => {
            let (difference, _) = difference(&loaded.config, &loaded.config);
            assert!(difference.is_empty());
            for problem in &loaded.warnings {
                assert!(!problem.render("warning").is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
