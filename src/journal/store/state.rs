//! What is known of each channel's session, element by element.

use rusqlite::{Connection, Row, params};

use super::{Store, signed, sum_texts, to_usize, unsigned};
use crate::{base::clock::UnixMillis, journal::error::StoreError};

/// An element of a channel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateElement {
    /// The channel's label.
    pub channel: Box<str>,
    /// The element's name.
    pub element: Box<str>,
    /// Its value as JSON; `None`: it is gone.
    pub value: Option<Box<str>>,
    /// When it became that, or was gone.
    pub at: UnixMillis,
}

impl Store {
    /// All elements of all channels' states whose sum is right.
    pub(in crate::journal) fn state(&self) -> Result<Vec<StateElement>, StoreError> {
        let mut state = Vec::new();
        self.each_element(|element| state.push(element))?;
        Ok(state)
    }

    /// Shows `each` of them, to the first row that the file does not give out.
    pub(super) fn each_element(
        &self,
        mut each: impl FnMut(StateElement),
    ) -> Result<(), StoreError> {
        let mut statement =
            self.db.prepare("SELECT channel, element, value, at, crc FROM state")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            element(row).into_iter().for_each(&mut each);
        }
        Ok(())
    }

    /// Channel, element and bytes of its value.
    pub(in crate::journal) fn state_sizes(
        &self,
    ) -> Result<Vec<(String, String, usize)>, StoreError> {
        let mut statement =
            self.db.prepare("SELECT channel, element, octet_length(value) FROM state")?;
        let rows = statement.query_map([], |row| {
            Ok((row.get(0)?, row.get(1)?, to_usize(row.get(2)?).unwrap_or(0)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Writes it over what was there.
pub(super) fn write(db: &Connection, element: &StateElement) -> Result<(), StoreError> {
    let (channel, name) = (&element.channel, &element.element);
    match &element.value {
        Some(value) => db
            .prepare_cached(
                "INSERT OR REPLACE INTO state(channel, element, value, at, crc)
                 VALUES(?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![channel, name, value, signed(element.at), sum(element)])?,
        None => db
            .prepare_cached("DELETE FROM state WHERE channel = ?1 AND element = ?2")?
            .execute([channel, name])?,
    };
    Ok(())
}

/// `None` where a column is not what was written, or the sum is wrong.
fn element(row: &Row<'_>) -> Option<StateElement> {
    let text = |column| row.get_ref(column).ok()?.as_str().ok();
    let element = StateElement {
        channel: text(0)?.into(),
        element: text(1)?.into(),
        value: Some(text(2)?.into()),
        at: unsigned(row.get(3).ok()?),
    };
    (row.get::<_, u32>(4).ok()? == sum(&element)).then_some(element)
}

fn sum(element: &StateElement) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    let value = element.value.as_deref().unwrap_or_default();
    sum_texts(
        &mut crc,
        &[element.channel.as_bytes(), element.element.as_bytes(), value.as_bytes()],
    );
    crc.update(&element.at.to_le_bytes());
    crc.finalize()
}
