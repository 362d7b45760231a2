//! Who may do what.
//!
//! - **Host names.** A web page can make its own name lead to this machine (DNS
//!   rebinding) and would then count as the endpoint's own page. So a request must name an address,
//!   `localhost`, the name that is listened on, or one of `allowed_hosts`; another is answered 421.
//! - **Changes.** Whatever is not GET or HEAD needs `Authorization: Bearer` with
//!   `http.admin_token`. Where none is configured nothing can be changed: 403. A page of somebody
//!   else's cannot send that header: there are no CORS headers here, on purpose.
//! - **Guesses.** Ten wrong tokens a minute from an address, a hundred from all: [`super::attempts`].
//! - **A proxy that asks who comes.** Requests from an address of `http.trusted_proxies` count as if they
//!   showed the admin token: Home Assistant's Ingress has its own login. They may come under whatever host
//!   name, but for those of a loopback address, which any browser on this machine has too. What a page of
//!   another site sends is refused all the same: [`is_cross_site`].
//! - **Reading.** On loopback, everybody on this machine. Beyond it the token again, but for the
//!   probes and the empty page, unless `http.insecure` says that all may read.
//!
//! [`judge`] is a function of the request and the configuration; the rest is
//! carrying it out.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    extract::{Request, State as Extract},
    http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tracing::warn;

use super::{State, attempts::Attempts, connections::Peer, refused};
use crate::config::Http;

/// How long a request may take, its body included. Events that go on for ever are answered at once.
const REQUEST: Duration = Duration::from_secs(30);

/// What may be asked without a token from everywhere: what a probe needs, and the page, which is
/// empty until its script has read the rest.
const OPEN: &[&str] = &["/", "/livez", "/readyz"];

/// A request from a trusted proxy carries this.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trusted;

/// Why the endpoint must not listen as it is configured.
#[derive(Debug, thiserror::Error)]
#[error(
    "http.listen can be reached from other machines: http.admin_token is needed, or http.insecure = true"
)]
pub struct ExposedWithoutToken;

impl ExposedWithoutToken {
    /// Looks at the address that is really listened on: a name may lead anywhere.
    pub fn of(address: SocketAddr, http: &Http) -> Result<(), Self> {
        let fine = address.ip().is_loopback() || http.admin_token.is_some() || http.insecure;
        if fine { Ok(()) } else { Err(Self) }
    }
}

/// Stands before every route.
pub(super) async fn guard(
    Extract(state): Extract<State>,
    mut request: Request,
    next: Next,
) -> Response {
    let access = state.access.borrow().clone();
    let trusted = access.trusts(peer(request.extensions()));
    if trusted {
        request.extensions_mut().insert(Trusted);
    }
    let caller = Caller { peer: peer(request.extensions()), attempts: &state.attempts };
    let (method, uri) = (request.method(), request.uri());
    let verdict = judge(&access, caller, state.address, method, uri, request.headers()).await;
    let mut response = match verdict {
        Ok(()) => timeout(REQUEST, next.run(request))
            .await
            .unwrap_or_else(|_| refused(StatusCode::REQUEST_TIMEOUT, "the request took too long")),
        Err(refusal) => {
            if refusal == Refusal::WrongToken {
                let (from, path) = (caller.peer, request.uri().path());
                warn!(%from, path, "a request came with a wrong admin token");
            }
            refusal.answer()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, if trusted { "SAMEORIGIN" } else { "DENY" }),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Not even as an image or a script of another page.
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// It asks for a name that is not ours.
    Host,
    /// A page of another site sent it, through a trusted proxy.
    Site,
    /// There is no token with which it could be allowed.
    NoAdmin,
    /// It needs the token and shows none.
    NoToken,
    /// It shows another.
    WrongToken,
    /// Too many wrong ones were shown: none is looked at for so many seconds.
    TooMany(u64),
    /// The token cannot be read.
    Unreadable,
}

impl Refusal {
    fn answer(self) -> Response {
        let (status, why) = match self {
            Self::Host => (
                StatusCode::MISDIRECTED_REQUEST,
                "this host name is not allowed: use an address, or add it to http.allowed_hosts",
            ),
            Self::Site => (
                StatusCode::MISDIRECTED_REQUEST,
                "a page of another site sent this; where none did, the proxy must pass on the Host that \
                 the browser sends, as Host or as X-Forwarded-Host",
            ),
            Self::NoAdmin => {
                (StatusCode::FORBIDDEN, "nothing can be changed: no http.admin_token is configured")
            }
            Self::NoToken => {
                (StatusCode::UNAUTHORIZED, "Authorization: Bearer with http.admin_token is needed")
            }
            Self::WrongToken => (StatusCode::UNAUTHORIZED, "this is not the admin token"),
            Self::TooMany(_) => {
                (StatusCode::TOO_MANY_REQUESTS, "too many wrong admin tokens: try again later")
            }
            Self::Unreadable => (StatusCode::FORBIDDEN, "http.admin_token cannot be read"),
        };
        let mut response = refused(status, why).into_response();
        if let Self::TooMany(seconds) = self {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
struct Caller<'a> {
    peer: IpAddr,
    attempts: &'a Attempts,
}

/// Where a request came from.
fn peer(extensions: &Extensions) -> IpAddr {
    // Without a connection of ours (in tests) all come from nowhere.
    extensions.get().map_or(IpAddr::from([0, 0, 0, 0]), |Peer(peer)| *peer)
}

async fn judge(
    access: &Http,
    caller: Caller<'_>,
    address: SocketAddr,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), Refusal> {
    let trusted = access.trusts(caller.peer);
    // A proxy on this machine looks like a browser on it, to which a page may have rebound its name.
    let any_name = trusted && !caller.peer.to_canonical().is_loopback();
    if !any_name && !is_for_us(access, uri, headers) {
        return Err(Refusal::Host);
    }
    let reads = method == Method::GET || method == Method::HEAD;
    if trusted {
        return if is_cross_site(reads, headers) { Err(Refusal::Site) } else { Ok(()) };
    }
    let open = OPEN.contains(&uri.path()) || address.ip().is_loopback() || access.insecure;
    if reads && open {
        return Ok(());
    }
    has_token(access, caller, headers).await
}

/// Whether a page of another site sent what a trusted proxy passes on.
///
/// Browsers say in `Sec-Fetch-Site` where a request comes from, but to https and to `localhost` only. In
/// `Origin` they say it with whatever another site's page sends that is not GET or HEAD. What has neither
/// comes from no browser.
fn is_cross_site(reads: bool, headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if reads {
        return matches!(site, Some(b"cross-site"));
    }
    match (site, headers.get(header::ORIGIN)) {
        (Some(site), _) => !matches!(site, b"same-origin" | b"none"),
        (None, Some(origin)) => !is_same_host(origin, headers),
        (None, None) => false,
    }
}

/// Whether an origin is the host that the browser asked for: that is in `Host`, or in `X-Forwarded-Host` where
/// a proxy asks for another one.
fn is_same_host(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    // `null` has no host.
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let Some((_, origin)) = origin else { return false };
    let forwarded = headers.get_all("x-forwarded-host").iter();
    let hosts = headers.get_all(header::HOST).iter().chain(forwarded);
    hosts
        .filter_map(|hosts| hosts.to_str().ok())
        .flat_map(|hosts| hosts.split(','))
        .any(|host| host.trim().eq_ignore_ascii_case(origin))
}

/// Whether the request shows the admin token.
async fn has_token(access: &Http, caller: Caller<'_>, headers: &HeaderMap) -> Result<(), Refusal> {
    let wanted = access.admin_token.as_ref().ok_or(Refusal::NoAdmin)?;
    let shown = headers.get(header::AUTHORIZATION).ok_or(Refusal::NoToken)?;
    let Caller { peer, attempts } = caller;
    attempts.attempt(peer).map_err(|wait| Refusal::TooMany(wait.as_secs() + 1))?;
    let shown = shown.to_str().ok().and_then(bearer).ok_or(Refusal::WrongToken)?;
    let wanted = wanted.read_token().await.map_err(|error| {
        attempts.give_back(peer, false);
        warn!(%error, "the admin token cannot be read");
        Refusal::Unreadable
    })?;
    if !constant_time_eq(shown, wanted.expose()) {
        return Err(Refusal::WrongToken);
    }
    attempts.give_back(peer, true);
    Ok(())
}

/// Whether whoever may only read openly may see this too: without the token the probe's answer is
/// short where others can reach it.
pub(super) async fn may_see_reasons(
    state: &State,
    extensions: &Extensions,
    headers: &HeaderMap,
) -> bool {
    let access = state.access.borrow().clone();
    // A wrong token gets the short answer, and counts all the same: else it could be guessed here.
    let caller = Caller { peer: peer(extensions), attempts: &state.attempts };
    state.address.ip().is_loopback()
        || access.insecure
        || access.trusts(caller.peer)
        || has_token(&access, caller, headers).await.is_ok()
}

/// The token behind `Bearer`, whose case does not matter (RFC 9110, section 11.1).
fn bearer(text: &str) -> Option<&str> {
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Compares in a time that tells nothing: neither where two texts differ, nor how long they are.
pub(crate) fn constant_time_eq(a: &str, b: &str) -> bool {
    let (a, b) = (Sha256::digest(a), Sha256::digest(b));
    let differing =
        a.iter().zip(b.iter()).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    differing == 0
}

/// Whether all names in a request can only have been meant for this endpoint.
fn is_for_us(access: &Http, uri: &Uri, headers: &HeaderMap) -> bool {
    // RFC 9112, section 3.2: exactly one Host; a target with a name of its own stands over it.
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()).unwrap_or_default();
    let named = uri.authority().is_none_or(|authority| host_allowed(authority.as_str(), access));
    hosts.next().is_none() && named && host_allowed(host, access)
}

/// Whether a name in a request can only have been meant for this endpoint.
fn host_allowed(host: &str, access: &Http) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    // An address cannot be rebound.
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let listened = access.listen.rsplit_once(':').map_or("", |(host, _)| host);
    ["localhost", listened]
        .into_iter()
        .chain(access.allowed_hosts.iter().map(String::as_str))
        .any(|known| !known.is_empty() && known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SecretRef;

    /// Somebody who has not guessed before.
    async fn by_stranger(
        access: &Http,
        address: SocketAddr,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        let attempts = Attempts::default();
        let caller = Caller { peer: IpAddr::from([192, 0, 2, 1]), attempts: &attempts };
        judge(access, caller, address, method, uri, headers).await
    }

    fn headers(host: &str, token: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(token) = token {
            headers.insert(header::AUTHORIZATION, token.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_allowed_hosts_are_answered() {
        let access = Http {
            listen: "relay.lan:9464".into(),
            allowed_hosts: vec!["Relay.example.org".into()],
            ..Http::default()
        };
        for (host, fine) in [
            ("127.0.0.1:9464", true),
            ("127.0.0.1", true),
            ("[::1]:9464", true),
            ("192.168.1.7:9464", true),
            ("localhost:9464", true),
            ("LOCALHOST", true),
            ("localhost.:9464", true),
            ("relay.lan", true),
            ("relay.example.org:80", true),
            ("evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("localhost@evil.example", false),
            ("evil.example@localhost", false),
            ("relay.example.org.evil.example", false),
            ("2130706433.nip.io", false),
            ("", false),
            ("a b", false),
        ] {
            assert_eq!(host_allowed(host, &access), fine, "{host}");
        }
        assert!(!host_allowed("", &Http::default()) && !host_allowed(":9464", &Http::default()));
    }

    #[tokio::test]
    async fn a_trusted_proxy_needs_no_token_and_no_name_but_no_other_site_comes_through_it() {
        let proxy: IpAddr = "172.30.32.2".parse().unwrap();
        let access = Http {
            trusted_proxies: vec!["172.30.32.2".into()],
            admin_token: Some(SecretRef::Value("s3cret".into())),
            ..Http::default()
        };
        let attempts = Attempts::default();
        let judged = async |peer: IpAddr, site: &str| {
            let mut headers = headers("my.duckdns.example", None);
            headers.insert("sec-fetch-site", site.parse().unwrap());
            let caller = Caller { peer, attempts: &attempts };
            let (here, uri) = ("0.0.0.0:1".parse().unwrap(), Uri::from_static("/reload"));
            judge(&access, caller, here, &Method::POST, &uri, &headers).await
        };
        assert_eq!(judged(proxy, "same-origin").await, Ok(()));
        let mapped = "::ffff:172.30.32.2".parse().unwrap();
        assert_eq!(judged(mapped, "none").await, Ok(()), "as a socket of both families shows it");
        for site in ["cross-site", "same-site", ""] {
            assert_eq!(judged(proxy, site).await, Err(Refusal::Site), "{site}");
        }
        assert_eq!(judged("172.30.32.3".parse().unwrap(), "same-origin").await, Err(Refusal::Host));
    }

    #[tokio::test]
    async fn a_trusted_proxy_on_this_machine_needs_a_name_that_is_allowed() {
        let access = Http {
            trusted_proxies: vec!["127.0.0.1".into(), "::1".into()],
            allowed_hosts: vec!["relay.example.org".into()],
            ..Http::default()
        };
        let attempts = Attempts::default();
        for (peer, uri, host, expected) in [
            ("127.0.0.1", "/reload", "127.0.0.1:9464", Ok(())),
            ("127.0.0.1", "/reload", "relay.example.org", Ok(())),
            ("127.0.0.1", "/reload", "rebound.example", Err(Refusal::Host)),
            ("127.0.0.1", "http://rebound.example/reload", "localhost", Err(Refusal::Host)),
            ("::1", "/reload", "rebound.example", Err(Refusal::Host)),
            ("::ffff:127.0.0.1", "/reload", "rebound.example", Err(Refusal::Host)),
        ] {
            let caller = Caller { peer: peer.parse().unwrap(), attempts: &attempts };
            let (here, uri) = ("127.0.0.1:1".parse().unwrap(), Uri::from_static(uri));
            for method in [Method::GET, Method::POST] {
                let headers = headers(host, None);
                let judged = judge(&access, caller, here, &method, &uri, &headers).await;
                assert_eq!(judged, expected, "{method} {uri} of {peer} at {host}");
            }
        }
    }

    /// Over plain HTTP no browser says of which site a page is, only of which origin.
    #[tokio::test]
    async fn no_form_of_another_origin_comes_through_a_trusted_proxy_over_plain_http() {
        let access = Http { trusted_proxies: vec!["192.0.2.9".into()], ..Http::default() };
        let attempts = Attempts::default();
        let caller = Caller { peer: "192.0.2.9".parse().unwrap(), attempts: &attempts };
        let judged = async |method: Method, origin: &str, forwarded: &str, site: &str| {
            let mut headers = headers("relay.lan:8080", None);
            for (name, value) in
                [("origin", origin), ("x-forwarded-host", forwarded), ("sec-fetch-site", site)]
            {
                if !value.is_empty() {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            let (here, uri) = ("0.0.0.0:1".parse().unwrap(), Uri::from_static("/reload"));
            judge(&access, caller, here, &method, &uri, &headers).await
        };
        let (own, other) = ("http://Relay.lan:8080", "http://evil.example");
        for (origin, forwarded, site, expected) in [
            ("", "", "", Ok(())),
            (own, "", "", Ok(())),
            (other, "", "", Err(Refusal::Site)),
            ("http://relay.lan", "", "", Err(Refusal::Site)),
            ("http://relay.lan:8081", "", "", Err(Refusal::Site)),
            ("null", "", "", Err(Refusal::Site)),
            // The proxy asks under a name of its own, and says which one it was asked for.
            ("https://home.example", "Home.example", "", Ok(())),
            ("https://home.example", "first.example, home.example", "", Ok(())),
            (other, "home.example", "", Err(Refusal::Site)),
            // Where the site is said, it counts.
            (other, "", "same-origin", Ok(())),
            (own, "", "same-site", Err(Refusal::Site)),
        ] {
            let judged = judged(Method::POST, origin, forwarded, site).await;
            assert_eq!(judged, expected, "{origin:?} {forwarded:?} {site:?}");
        }
        assert_eq!(judged(Method::GET, "", "", "same-site").await, Ok(()));
        assert_eq!(judged(Method::GET, "", "", "cross-site").await, Err(Refusal::Site));
        assert_eq!(judged(Method::HEAD, "", "", "cross-site").await, Err(Refusal::Site));
    }

    #[tokio::test]
    async fn a_second_host_and_a_target_of_another_name_are_refused() {
        let here = "127.0.0.1:9464".parse().unwrap();
        let access = Http::default();
        let judged = async |uri: &'static str, headers: &HeaderMap| {
            by_stranger(&access, here, &Method::GET, &Uri::from_static(uri), headers).await
        };
        let mut twice = headers("localhost", None);
        twice.append(header::HOST, "evil.example".parse().unwrap());
        assert_eq!(judged("/status", &twice).await, Err(Refusal::Host));
        assert_eq!(judged("/status", &HeaderMap::new()).await, Err(Refusal::Host));
        let one = headers("localhost", None);
        assert_eq!(judged("http://evil.example/status", &one).await, Err(Refusal::Host));
        assert_eq!(judged("http://localhost/status", &one).await, Ok(()));
    }

    #[tokio::test]
    async fn changing_needs_the_token_and_reading_needs_it_beyond_this_machine() {
        let token = Some(SecretRef::Value("s3cret".into()));
        let plain = Http::default();
        let admin = Http { admin_token: token.clone(), ..Http::default() };
        let insecure = Http { insecure: true, ..Http::default() };
        let lost = Http { admin_token: Some(SecretRef::File("/nowhere".into())), ..plain.clone() };
        let (near, far) = ("127.0.0.1:1", "0.0.0.0:1");
        let right = Some("Bearer s3cret");
        for (access, address, method, path, token, expected) in [
            (&plain, near, Method::GET, "/status", None, Ok(())),
            (&plain, near, Method::HEAD, "/status", None, Ok(())),
            (&plain, near, Method::POST, "/reload", None, Err(Refusal::NoAdmin)),
            (&plain, near, Method::POST, "/reload", right, Err(Refusal::NoAdmin)),
            (&plain, near, Method::DELETE, "/", None, Err(Refusal::NoAdmin)),
            (&plain, near, Method::OPTIONS, "/reload", None, Err(Refusal::NoAdmin)),
            (&admin, near, Method::GET, "/events", None, Ok(())),
            (&admin, near, Method::POST, "/reload", None, Err(Refusal::NoToken)),
            (&admin, near, Method::POST, "/reload", right, Ok(())),
            (&admin, near, Method::POST, "/reload", Some("bearer  s3cret"), Ok(())),
            (&admin, near, Method::POST, "/reload", Some("Bearer s3cre"), Err(Refusal::WrongToken)),
            (&admin, near, Method::POST, "/reload", Some("Bearer "), Err(Refusal::WrongToken)),
            (&admin, near, Method::POST, "/reload", Some("s3cret"), Err(Refusal::WrongToken)),
            (&admin, near, Method::POST, "/reload", Some("Basic s3cret"), Err(Refusal::WrongToken)),
            (&admin, far, Method::GET, "/status", None, Err(Refusal::NoToken)),
            (&admin, far, Method::GET, "/events", right, Ok(())),
            (&admin, far, Method::GET, "/livez", None, Ok(())),
            (&admin, far, Method::GET, "/", None, Ok(())),
            (&insecure, far, Method::GET, "/events", None, Ok(())),
            (&insecure, far, Method::POST, "/reload", None, Err(Refusal::NoAdmin)),
            (&plain, far, Method::GET, "/status", None, Err(Refusal::NoAdmin)),
            (&lost, near, Method::POST, "/reload", right, Err(Refusal::Unreadable)),
        ] {
            let headers = headers("localhost", token);
            let (address, uri) = (address.parse().unwrap(), Uri::from_static(path));
            let judged = by_stranger(access, address, &method, &uri, &headers).await;
            assert_eq!(judged, expected, "{method} {path} at {address} with {token:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_guesser_is_answered_no_more_and_others_are() {
        let access =
            Http { admin_token: Some(SecretRef::Value("s3cret".into())), ..Http::default() };
        let attempts = Attempts::default();
        let post = async |peer: [u8; 4], token: &str| {
            let caller = Caller { peer: peer.into(), attempts: &attempts };
            let (here, uri) = ("127.0.0.1:1".parse().unwrap(), Uri::from_static("/reload"));
            let headers = headers("localhost", Some(token));
            judge(&access, caller, here, &Method::POST, &uri, &headers).await
        };
        let (guesser, owner) = ([127, 0, 0, 1], [127, 0, 0, 2]);
        let mut wrong = 0;
        for n in 0..200 {
            wrong += usize::from(
                post(guesser, &format!("Bearer {n}")).await == Err(Refusal::WrongToken),
            );
        }
        assert_eq!(wrong, super::super::attempts::PER_ADDRESS);
        // The right one tells nothing either, until the minute is over.
        assert!(matches!(post(guesser, "Bearer s3cret").await, Err(Refusal::TooMany(1..=61))));
        assert_eq!(post(owner, "Bearer s3cret").await, Ok(()));
        tokio::time::advance(super::super::attempts::WINDOW).await;
        assert_eq!(post(guesser, "Bearer s3cret").await, Ok(()));
    }

    #[test]
    fn what_others_can_reach_needs_a_token_or_a_word() {
        let admin = Http { admin_token: Some(SecretRef::Env("T".into())), ..Http::default() };
        let insecure = Http { insecure: true, ..Http::default() };
        for (address, access, fine) in [
            ("127.0.0.1:1", &Http::default(), true),
            ("[::1]:1", &Http::default(), true),
            ("0.0.0.0:1", &Http::default(), false),
            ("[::]:1", &Http::default(), false),
            ("192.168.0.2:1", &admin, true),
            ("192.168.0.2:1", &insecure, true),
        ] {
            assert_eq!(
                ExposedWithoutToken::of(address.parse().unwrap(), access).is_ok(),
                fine,
                "{address}"
            );
        }
    }
}
