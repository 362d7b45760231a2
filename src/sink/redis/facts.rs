//! What the server says of itself that an operator should know: what an acknowledged entry survives.

use super::link::Link;

/// How durable the server is. Empty where the user may not ask.
pub(super) async fn durability(link: &mut Link) -> Vec<String> {
    let Ok(answer) = link.request(&redis::cmd("INFO")).await else { return Vec::new() };
    let Ok(info) = redis::from_redis_value::<String>(answer) else { return Vec::new() };
    let value = |key: &str| {
        info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default()
    };
    let mut facts = Vec::new();
    if value("aof_enabled") == "0" {
        facts.push(
            "an acknowledged entry does not survive a crash of this server: appendonly is off"
                .to_owned(),
        );
    }
    if value("aof_enabled") == "1" {
        facts.extend(synced(link).await);
    }
    if value("maxmemory_policy").starts_with("allkeys") && value("maxmemory") != "0" {
        facts.push(format!(
            "this server drops streams when its memory is full: maxmemory-policy is {}",
            value("maxmemory_policy")
        ));
    }
    if value("role") == "slave" {
        facts.push("this server is a replica: it will not take entries".to_owned());
    }
    facts
}

/// Where the stream is trimmed to less than may be on its way: a repeat of what is gone is not recognised.
pub(super) fn trimming(max_len: u64, window: usize) -> Option<String> {
    let window = u64::try_from(window).unwrap_or(u64::MAX);
    (1..window).contains(&max_len).then(|| {
        format!(
            "after a crash events may be stored twice: the stream keeps about {max_len} entries (max_len), and \
             {window} events may be on their way (window); set max_len to more, or window to less"
        )
    })
}

/// How far behind the append-only file on disk may be, where the user may ask for it.
async fn synced(link: &mut Link) -> Option<String> {
    let mut question = redis::cmd("CONFIG");
    question.arg("GET").arg("appendfsync");
    // Most users may not ask; then nothing is known, and nothing said.
    let answer = link.request(&question).await.ok()?;
    let pairs: Vec<(String, String)> = redis::from_redis_value(answer).ok()?;
    match pairs.first()?.1.as_str() {
        "everysec" => Some(
            "an acknowledged entry is on disk within a second: appendfsync is everysec".to_owned(),
        ),
        "no" => Some(
            "an acknowledged entry is on disk when the system writes it: appendfsync is no"
                .to_owned(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_keeps_less_than_the_window_is_reported() {
        for (max_len, is_reported) in [(0, false), (200, true), (2047, true), (2048, false)] {
            assert_eq!(trimming(max_len, 2048).is_some(), is_reported, "{max_len}");
        }
    }
}
