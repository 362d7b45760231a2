//! The refresh of OAuth2 tokens in a configuration.

use super::*;

const CLIENT: &str = "client_id = \"app\"\nclient_secret_env = \"S\"\n";

/// The problems of a configuration with these channels: key and message.
fn problems(text: &str) -> Vec<(String, String)> {
    let told =
        |problem: &Problem| (crate::config::problem::dotted(&problem.key), problem.message.clone());
    match load(&sources(text)) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems.iter().map(told).collect(),
    }
}

fn channel(label: &str, token_type: &str, more: &str) -> String {
    format!("[channels.{label}]\ntoken_type = {token_type:?}\ntopics = [\"channel.tips\"]\n{more}")
}

#[test]
fn a_token_is_refreshed_in_files_and_by_all_three_keys() {
    let files = "token_file = \"/t/a\"\nrefresh_token_file = \"/t/b\"\n";
    let whole = format!("{CLIENT}{files}");
    for kind in ["oauth2", "oauth"] {
        assert_eq!(problems(&channel("main", kind, &whole)), []);
    }
    for (kind, more, key, message) in [
        ("jwt", &*whole, "refresh_token", "only an access token of OAuth2"),
        ("apikey", &whole, "refresh_token", "only an access token of OAuth2"),
        ("oauth2", files, "client_id", "belong together"),
        ("oauth2", files, "client_secret", "belong together"),
        ("oauth2", &format!("{CLIENT}token_file = \"/t/a\"\n"), "refresh_token", "belong together"),
        (
            "oauth2",
            &format!("{CLIENT}token_file = \"/t/a\"\nrefresh_token_env = \"R\"\n"),
            "refresh_token",
            "refresh_token_file",
        ),
        (
            "oauth2",
            &format!("{CLIENT}token_file = \"/t/a\"\nrefresh_token = \"secret-canary\"\n"),
            "refresh_token",
            "refresh_token_file",
        ),
        (
            "oauth2",
            &format!("{CLIENT}token_credential = \"a\"\nrefresh_token_file = \"/t/b\"\n"),
            "token",
            "token_file",
        ),
        (
            "oauth2",
            &format!("{CLIENT}token_file = \"/t/a\"\nrefresh_token_file = \"/t/a\"\n"),
            "refresh_token",
            "must be two files",
        ),
        ("oauth2", &whole.replace("\"app\"", "\" \""), "client_id", "is empty"),
    ] {
        let found = problems(&channel("main", kind, more));
        let key = format!("channels.main.{key}");
        let fits = |(at, text): &(String, String)| *at == key && text.contains(message);
        assert!(found.iter().any(fits), "{key} {message}: {found:?}");
        assert!(!format!("{found:?}").contains("canary"));
    }
}

#[test]
fn two_channels_do_not_refresh_the_same_file() {
    let files = |a: &str, b: &str| format!("token_file = {a:?}\nrefresh_token_file = {b:?}\n");
    let one = channel("one", "oauth2", &format!("{CLIENT}{}", files("/t/a", "/t/b")));
    let other = |more: &str| channel("other", "oauth2", more);
    for (second, wrong) in [
        (format!("{CLIENT}{}", files("/t/c", "/t/d")), 0),
        (format!("{CLIENT}{}", files("/t/c", "/t/b")), 1),
        (format!("{CLIENT}{}", files("/t/a", "/t/b")), 2),
        // It reads what the other one refreshes.
        ("room = \"5b2e2007760aeb7729487dab\"\ntoken_file = \"/t/a\"\n".to_owned(), 0),
    ] {
        let found = problems(&format!("{one}{}", other(&second)));
        let same = |(_, text): &&(String, String)| text.contains("refreshes the same file");
        assert_eq!(found.iter().filter(same).count(), wrong, "{second}: {found:?}");
    }
}
