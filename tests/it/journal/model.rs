//! Whatever is done to it, the journal does what a plain list would do.

use astro_relay::{base::event::Seq, config::Start, journal::Journal};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::support::journal::{
    append, close, config, crashed, events, number, open, position, settled,
};

#[derive(Debug, Clone)]
enum Act {
    Append(u64),
    /// A sink reads at most so many, and advances over that share of them.
    Read(usize, usize, f64),
    Reopen,
    Crash,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1_u64..200).prop_map(Act::Append),
        6 => (0_usize..3, 1_usize..300, 0.0..1.0).prop_map(|(s, n, f)| Act::Read(s, n, f)),
        1 => Just(Act::Reopen),
        1 => Just(Act::Crash),
    ];
    prop::collection::vec(act, 1..40)
}

const SINKS: [&str; 3] = ["a", "b", "c"];

/// A list of events, and how many of them each sink has.
#[derive(Default)]
struct Model {
    appended: u64,
    had: [u64; 3],
}

struct Real {
    dir: TempDir,
    journal: Journal,
}

impl Real {
    fn open(dir: TempDir) -> Self {
        let (journal, opened) = open(&config(dir.path()));
        assert_eq!(opened.lost, 0);
        Self { dir, journal }
    }

    async fn act(self, act: &Act, model: &mut Model) -> Self {
        match *act {
            Act::Append(count) => {
                append(&self.journal, events(model.appended..model.appended + count)).await;
                model.appended += count;
                self.journal.ready().await;
                self
            }
            Act::Read(sink, limit, share) => {
                self.read(sink, limit, share, model).await;
                self
            }
            Act::Reopen => {
                close(self.journal).await;
                Self::open(self.dir)
            }
            Act::Crash => {
                settled(&self.journal, &SINKS).await;
                let copy = crashed(self.dir.path());
                close(self.journal).await;
                Self::open(copy)
            }
        }
    }

    async fn read(&self, sink: usize, limit: usize, share: f64, model: &mut Model) {
        let at = position(&self.journal, SINKS[sink]);
        let had = model.had[sink];
        if had == model.appended {
            return;
        }
        let mut batch = self.journal.next(at, limit, 40_000).await.unwrap();
        assert_eq!(batch.lost, 0);
        if batch.records.is_empty() {
            // A gap in the numbering, crossed in one step.
            batch = self.journal.next(batch.through, limit, 40_000).await.unwrap();
        }
        let numbers: Vec<_> = batch.records.iter().map(|record| number(record)).collect();
        let count = u64::try_from(numbers.len()).unwrap();
        assert!(count > 0 && count <= u64::try_from(limit).unwrap());
        assert_eq!(numbers, (had..had + count).collect::<Vec<_>>());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "small counts"
        )]
        let done = (share * numbers.len() as f64) as usize;
        let through: Seq = match done {
            0 => return,
            done if done == numbers.len() => batch.through,
            done => batch.records[done - 1].seq,
        };
        self.journal.advance(SINKS[sink], through);
        model.had[sink] += u64::try_from(done).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_journal_behaves_like_a_list_with_cursors(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut real = Real::open(tempfile::tempdir().unwrap());
            let mut model = Model::default();
            for sink in SINKS {
                real.journal.register(sink, Start::Earliest).unwrap();
            }
            for act in &acts {
                real = real.act(act, &mut model).await;
            }
            for (sink, had) in SINKS.iter().zip(model.had) {
                let at = position(&real.journal, sink);
                let got = crate::support::journal::read_all(&real.journal, at).await;
                assert_eq!(got.lost, 0);
                assert_eq!(got.numbers, (had..model.appended).collect::<Vec<_>>());
            }
            close(real.journal).await;
        });
    }
}
