//! `/`: the page. One file without anything from elsewhere.
//!
//! Its policy names the digests of the one script and the one style that stand
//! in it. Nothing else runs, wherever it may come from: what viewers write is on this page.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{Html, IntoResponse},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

const PAGE: &str = include_str!("page.html");

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = |tag: &str| BASE64_STANDARD.encode(Sha256::digest(inside(tag)));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        digest("script"),
        digest("style")
    )
});

pub(super) async fn page() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, POLICY.as_str())], Html(PAGE))
}

/// What stands between the page's only pair of these tags.
fn inside(tag: &str) -> &'static str {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let inside = PAGE.split_once(&*open).and_then(|(_, rest)| rest.split_once(&*close));
    inside.map_or("", |(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_nothing_from_elsewhere() {
        for tag in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{tag}")).count(), 1, "{tag}");
            assert!(inside(tag).len() > 100, "{tag}");
        }
        for foreign in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        // What would take text for markup, or break the policy.
        for dangerous in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("] {
            assert!(!PAGE.contains(dangerous), "{dangerous}");
        }
        let markup = PAGE.replace(inside("script"), "").replace(inside("style"), "");
        assert!(!markup.contains(" style=") && !markup.contains(" on"), "{markup}");
    }
}
