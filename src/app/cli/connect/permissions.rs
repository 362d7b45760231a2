//! Asks a destination whether we may publish, and puts the answers into words.

use std::{collections::BTreeSet, sync::Arc};

use tokio::time::timeout;

use crate::sink::{self, Opening, Permission};

/// Addresses of one sink that are asked about within its timeout: each is a question to the destination. A
/// house has some thirty topics.
const AT_ONCE: usize = 64;

/// Addresses that one line names.
const NAMED: usize = 10;

/// Asks for the right to publish at each address. The answers end early where the destination has no word
/// for it, or where something fails, which is said beside them.
pub(super) async fn permissions(
    probe: Option<sink::Probe>,
    opening: &Opening<'_>,
    addresses: Vec<Arc<str>>,
) -> (Vec<(Arc<str>, Permission)>, Option<String>) {
    let mut answers = Vec::new();
    let Some(probe) = probe else { return (answers, None) };
    for some in addresses.chunks(AT_ONCE) {
        let probed = probe(opening, some.to_vec());
        let answered = match timeout(opening.config.timeout.0, probed).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(failure)) => {
                return (answers, Some(crate::delivery::describe(&failure.cause)));
            }
            Err(_) => {
                let why = "no answer within its timeout to whether it may publish";
                return (answers, Some(why.to_owned()));
            }
        };
        let is_whole = answered.len() == some.len();
        answers.extend(some.iter().cloned().zip(answered));
        if !is_whole {
            break;
        }
    }
    (answers, None)
}

/// Says where it may publish, and where not; whether none was denied.
pub(super) fn report_permissions(
    name: &str,
    answers: Vec<(Arc<str>, Permission)>,
    lines: &mut Vec<String>,
) -> bool {
    let (mut granted, mut denied, mut unknown) = (Vec::new(), 0, BTreeSet::new());
    for (address, permission) in answers {
        match permission {
            // A destination without addresses takes what it takes.
            Permission::Granted if address.is_empty() => {}
            Permission::Granted => granted.push(address),
            Permission::Denied(reason) => {
                denied += 1;
                lines.push(format!("may not publish to {address}: {reason}"));
            }
            Permission::DeniedBelow { reason, probed } => {
                denied += 1;
                lines.push(format!(
                    "may not publish to {address}: {reason}, asked at {probed}; if the right is given for \
                     single addresses, send-test shows more"
                ));
            }
            Permission::Unknown(why) => {
                // Once, however many addresses it is of.
                if unknown.insert(why) {
                    lines.push(format!(
                        "whether it may publish is not known, {why}: astro-relay send-test --sink {name}"
                    ));
                }
            }
        }
    }
    if !granted.is_empty() {
        lines.push(format!("may publish to {}", listed(&granted)));
    }
    denied == 0
}

/// The state was denied below its topics. That is no failure: the rights may be given for these alone, as
/// the manual lists them.
pub(super) fn about_state(denied: &[(Arc<str>, Permission)]) -> Option<String> {
    let (_, Permission::DeniedBelow { reason, .. }) = denied.first()? else { return None };
    let probed: Vec<_> = denied.iter().map(|(probed, _)| Arc::clone(probed)).collect();
    let probed = listed(&probed);
    Some(format!(
        "may not publish to {probed}: {reason}; if the rights are given for single topics, status shows \
         whether they suffice when the relay runs"
    ))
}

/// The first of them, and how many more there are.
fn listed(addresses: &[Arc<str>]) -> String {
    let first = addresses.get(..NAMED).unwrap_or(addresses).join(", ");
    match addresses.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_behind_an_answer_that_is_not_known_counts() {
        let answers = vec![
            ("a".into(), Permission::Unknown("the broker says: not now")),
            ("b".into(), Permission::Denied("135".to_owned())),
            ("c".into(), Permission::Unknown("the broker says: not now")),
            ("d".into(), Permission::Granted),
        ];
        let mut lines = Vec::new();
        assert!(!report_permissions("home", answers, &mut lines));
        let unknown = "whether it may publish is not known, the broker says: not now: astro-relay \
                       send-test --sink home";
        assert_eq!(lines, [unknown, "may not publish to b: 135", "may publish to d"]);
    }

    #[test]
    fn a_long_list_of_addresses_is_cut() {
        let answer = |number: usize| (Arc::<str>::from(number.to_string()), Permission::Granted);
        for (count, last) in [(10, ", 9, 10"), (12, ", 9, 10 and 2 more")] {
            let mut lines = Vec::new();
            assert!(report_permissions("home", (1..=count).map(answer).collect(), &mut lines));
            assert!(lines.iter().all(|line| line.ends_with(last)) && lines.len() == 1, "{lines:?}");
        }
    }
}
