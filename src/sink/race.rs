//! Connecting to the first of several servers that answers.
//!
//! A server that is off or hangs costs the others a moment, never a whole timeout: the next is dialled
//! [`HEAD_START`] after the one before, in parallel, and the first that is ready is taken.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::time::sleep;

use super::Cause;

/// How long a server may be dialled before the next is dialled too. A healthy one in another part
/// of the world answers within it, TLS included.
const HEAD_START: Duration = Duration::from_millis(750);

/// The longest that dialling one address may take: name, TCP, TLS and the server's first words.
const MAX_DIAL: Duration = Duration::from_secs(5);

/// The least that it is given, however short the timeout.
const MIN_DIAL: Duration = Duration::from_secs(1);

/// How long dialling one address may take under the sink's `timeout`: a name may have several addresses,
/// which the client libraries try one after another.
pub(super) fn dial_limit(timeout: Duration) -> Duration {
    (timeout / 4).clamp(MIN_DIAL, MAX_DIAL)
}

/// Dials `servers` servers, beginning with the one at `begin`; answers which was the first, and its
/// connection. Where all fail, it is [`Cause::Denied`] only if every one of them denied us.
pub(super) async fn first<T, F>(
    servers: usize,
    begin: usize,
    timeout: Duration,
    dial: impl Fn(usize) -> F,
) -> Result<(usize, T), Cause>
where
    F: Future<Output = Result<T, Cause>>,
{
    let share = timeout / u32::try_from(2 * servers.max(1)).unwrap_or(u32::MAX);
    let head_start = HEAD_START.min(share);
    let mut waiting = (0..servers).map(|step| (begin + step) % servers);
    let mut dialling = FuturesUnordered::new();
    let mut failed = Vec::new();
    loop {
        match waiting.next() {
            Some(server) => dialling.push(dial(server).map(move |outcome| (server, outcome))),
            None if dialling.is_empty() => return Err(together(failed)),
            None => {}
        }
        tokio::select! {
            biased;
            Some((server, outcome)) = dialling.next() => match outcome {
                Ok(connection) => return Ok((server, connection)),
                Err(cause) => failed.push(cause),
            },
            () = sleep(head_start), if waiting.len() > 0 => {}
        }
    }
}

fn together(mut failed: Vec<Cause>) -> Cause {
    let last = failed.pop().unwrap_or_else(|| Cause::Down("no server is configured".into()));
    if failed.iter().all(|cause| std::mem::discriminant(cause) == std::mem::discriminant(&last)) {
        return last;
    }
    failed.push(last);
    let texts: Vec<String> = failed.iter().map(ToString::to_string).collect();
    Cause::Down(texts.join("; ").into())
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn down() -> Cause {
        Cause::Down("refused".into())
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_servers_cost_a_moment_each() {
        for timeout in [1, 2, 10, 30, 300].map(Duration::from_secs) {
            let begun = Instant::now();
            let dial = async |server: usize| {
                if server == 1 { Ok(()) } else { std::future::pending().await }
            };
            // The three dead ones come first.
            let (server, ()) = first(4, 2, timeout, dial).await.unwrap();
            assert_eq!(server, 1);
            assert!(begun.elapsed() < timeout.min(Duration::from_secs(3)), "{timeout:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusing_server_costs_nothing() {
        let begun = Instant::now();
        let dial = async |server: usize| if server == 2 { Ok(()) } else { Err(down()) };
        assert_eq!(first(3, 0, Duration::from_secs(10), dial).await.unwrap().0, 2);
        assert!(begun.elapsed().is_zero());
    }

    #[tokio::test]
    async fn denied_only_if_all_servers_deny() {
        let denied = || Cause::Denied { reason: "no password".into() };
        let all = first(2, 0, Duration::from_secs(1), async |_| Err::<(), _>(denied())).await;
        assert!(matches!(all, Err(Cause::Denied { .. })));
        let dial = async |server: usize| Err::<(), _>(if server == 0 { denied() } else { down() });
        let cause = first(2, 0, Duration::from_secs(1), dial).await.unwrap_err();
        assert!(matches!(cause, Cause::Down(_)) && cause.to_string().contains("no password"));
        let none = first(0, 0, Duration::from_secs(1), async |_| Ok::<(), _>(())).await;
        assert!(none.is_err());
    }
}
