//! `/`: the page. One document without anything from elsewhere, joined from the files beside this one.
//!
//! Its policy names the digests of the one script and the one style that stand
//! in it. Nothing else runs, wherever it may come from: what viewers write is on this page.

use std::sync::LazyLock;

use axum::{
    Extension,
    http::header,
    response::{Html, IntoResponse},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

use super::guard::Trusted;

/// What another page of the relay's can use: the look, and the first of the scripts.
pub(crate) const STYLE: &str = include_str!("page/style.css");
pub(crate) const BASE_SCRIPT: &str = include_str!("page/base.js");

/// The scripts, in the order in which they stand in the page.
const SCRIPTS: &[&str] = &[
    BASE_SCRIPT,
    include_str!("page/actions.js"),
    include_str!("page/charts.js"),
    include_str!("page/session.js"),
    include_str!("page/things.js"),
    include_str!("page/cluster.js"),
    include_str!("page/events.js"),
    include_str!("page/main.js"),
];

static PAGE: LazyLock<Document> =
    LazyLock::new(|| Document::new(include_str!("page/page.html"), STYLE, &SCRIPTS.concat()));

/// The same in a frame of its own origin: a proxy that asks who comes may show it within its own pages.
static FRAMED: LazyLock<String> = LazyLock::new(|| PAGE.policy.replace(NO_FRAME, SAME_FRAME));

const NO_FRAME: &str = "frame-ancestors 'none'";
const SAME_FRAME: &str = "frame-ancestors 'self'";

/// A page and the policy that it is sent with.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) html: String,
    pub(crate) policy: String,
}

impl Document {
    /// Joins the parts.
    pub(crate) fn new(page: &str, style: &str, script: &str) -> Self {
        let digest = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; {NO_FRAME}; \
             require-trusted-types-for 'script'; trusted-types 'none'",
            digest(script),
            digest(style)
        );
        let html = page.replace("{{ style }}", style).replace("{{ script }}", script);
        Self { html, policy }
    }
}

pub(super) async fn page(trusted: Option<Extension<Trusted>>) -> impl IntoResponse {
    let policy = if trusted.is_some() { &*FRAMED } else { &*PAGE.policy };
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(&*PAGE.html))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands between the only pair of these tags.
    fn inside<'p>(page: &'p str, tag: &str) -> &'p str {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let inside = page.split_once(&*open).and_then(|(_, rest)| rest.split_once(&*close));
        inside.map_or("", |(inside, _)| inside)
    }

    #[test]
    fn the_page_has_one_script_and_one_style_and_nothing_from_elsewhere() {
        let (page, policy) = (&*PAGE.html, &*PAGE.policy);
        for tag in ["script", "style"] {
            assert_eq!(page.matches(&format!("<{tag}")).count(), 1, "{tag}");
            assert!(inside(page, tag).len() > 100, "{tag}");
            let digest = BASE64_STANDARD.encode(Sha256::digest(inside(page, tag)));
            assert!(policy.contains(&format!("{tag}-src 'sha256-{digest}'")), "{tag}");
        }
        for foreign in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        // What would take text for markup, or break the policy.
        for dangerous in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("] {
            assert!(!page.contains(dangerous), "{dangerous}");
        }
        let markup = page.replace(inside(page, "script"), "").replace(inside(page, "style"), "");
        assert!(!markup.contains(" style=") && !markup.contains(" on"), "{markup}");
        assert!(FRAMED.contains(SAME_FRAME) && !policy.contains(SAME_FRAME));
    }
}
