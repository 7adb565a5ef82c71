//! PostgreSQL's side of the calls: one session, driven by the thread that calls.
//!
//! A session has a runtime of its own, so that no call needs another thread to be woken. What begins
//! and ends changes, and every statement of whose answer nothing is asked, is sent ahead of the next one, in
//! the same packet: they cost no round trip.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, NoTls, Row, Socket};

use super::dialect::{Says, numbered};
use super::values::ValueRef;
use super::{PostgresServer, Result, SqlError};

/// How long making a connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Statements that a session keeps prepared. Their texts are our own, so there are not many more.
const CACHED_STATEMENTS: usize = 512;
/// Bounds on the server's side: a controller that hangs must not hold the others for ever, and none
/// waits for ever for one that does.
const BOUNDS: &str = "SET statement_timeout = '30s'; SET lock_timeout = '5s';
    SET idle_in_transaction_session_timeout = '15s'; SET client_min_messages = 'warning'";

/// One session.
pub(super) struct Session {
    /// Absent only while the session is dropped.
    runtime: Option<Runtime>,
    client: Arc<Client>,
    statements: RefCell<HashMap<String, Arc<Statement>>>,
    /// What goes out with the next statement, in this order.
    ahead: RefCell<Vec<Ahead>>,
}

/// A statement that is sent when this is polled first.
type Ahead = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>;
/// Statements that are sent ahead at most; what a server answers is kept until it is asked for.
const MOST_AHEAD: usize = 64;

/// A statement that a session has prepared.
pub(super) struct Statement {
    prepared: tokio_postgres::Statement,
    /// How many parameters our text has.
    takes: usize,
    says: Vec<Says>,
}

impl Session {
    pub(super) fn connect(server: &PostgresServer) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SqlError::Runtime)?;
        let client = runtime.block_on(async {
            let connecting = async {
                match server.tls() {
                    None => connected(server, NoTls).await,
                    Some(tls) => connected(server, tls.clone()).await,
                }
            };
            let client = tokio::time::timeout(CONNECT_PATIENCE, connecting)
                .await
                .map_err(|_| SqlError::ConnectTimeout)??;
            client.batch_execute(BOUNDS).await?;
            Ok::<_, SqlError>(client)
        })?;
        Ok(Self {
            runtime: Some(runtime),
            client: Arc::new(client),
            statements: RefCell::default(),
            ahead: RefCell::default(),
        })
    }

    /// A statement, prepared or taken from those that are.
    pub(super) fn prepare(&self, sql: &str) -> Result<Arc<Statement>> {
        if let Some(known) = self.statements.borrow().get(sql) {
            return Ok(Arc::clone(known));
        }
        let numbered = numbered(sql);
        let statement = Arc::new(Statement {
            prepared: self.run(self.client.prepare(&numbered.text))?,
            takes: numbered
                .says
                .iter()
                .map(Says::position)
                .max()
                .map_or(0, |most| most + 1),
            says: numbered.says,
        });
        let mut statements = self.statements.borrow_mut();
        if statements.len() >= CACHED_STATEMENTS {
            statements.clear();
        }
        statements.insert(sql.to_owned(), Arc::clone(&statement));
        Ok(statement)
    }

    /// Run a change; how many rows it touched.
    pub(super) fn execute(&self, statement: &Statement, values: &[ValueRef<'_>]) -> Result<usize> {
        let values = encoded(statement, values)?;
        let touched = self.run(self.client.execute(&statement.prepared, &lent(&values)))?;
        Ok(usize::try_from(touched).unwrap_or(usize::MAX))
    }

    /// Run a question; all of its rows.
    pub(super) fn query(&self, statement: &Statement, values: &[ValueRef<'_>]) -> Result<Vec<Row>> {
        let values = encoded(statement, values)?;
        self.run(self.client.query(&statement.prepared, &lent(&values)))
    }

    /// Run statements without parameters.
    pub(super) fn execute_batch(&self, sql: &str) -> Result<()> {
        self.run(self.client.batch_execute(sql))
    }

    /// Send this before the next statement, which tells if it fails; the transaction is lost then.
    pub(super) fn send_ahead(&self, sql: &'static str) {
        let client = Arc::clone(&self.client);
        let sent = async move { client.batch_execute(sql).await };
        self.ahead.borrow_mut().push(Box::pin(sent));
    }

    /// [`Session::send_ahead`] for a prepared statement.
    pub(super) fn send(&self, statement: &Statement, values: &[ValueRef<'_>]) -> Result<()> {
        let values = encoded(statement, values)?;
        let (client, prepared) = (Arc::clone(&self.client), statement.prepared.clone());
        let sent = async move { client.execute(&prepared, &lent(&values)).await.map(drop) };
        self.ahead.borrow_mut().push(Box::pin(sent));
        let is_enough = self.ahead.borrow().len() >= MOST_AHEAD;
        if is_enough { self.settle() } else { Ok(()) }
    }

    /// Wait for the answers to all that was sent ahead.
    pub(super) fn settle(&self) -> Result<()> {
        if self.ahead.borrow().is_empty() {
            return Ok(());
        }
        self.run(async { Ok(()) })
    }

    /// Undo the open transaction; whether the session is good for another.
    pub(super) fn abandon(&self) -> bool {
        self.ahead.take();
        self.execute_batch("ROLLBACK").is_ok() && !self.client.is_closed()
    }

    fn run<T>(&self, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
        let runtime = self
            .runtime
            .as_ref()
            .expect("the runtime is there until the session is dropped");
        let ahead = self.ahead.take();
        Ok(runtime.block_on(async {
            if ahead.is_empty() {
                return work.await;
            }
            // Requests go out in the order of their first polls.
            let (before, answer) = tokio::join!(biased; all(ahead), work);
            before.and(answer)
        })?)
    }
}

/// A connection that is driven to its end, which every later call tells.
async fn connected<T>(server: &PostgresServer, tls: T) -> Result<Client, tokio_postgres::Error>
where
    T: MakeTlsConnect<Socket, Stream: Send + 'static>,
{
    let (client, connection) = server.config().connect(tls).await?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

impl Drop for Session {
    fn drop(&mut self) {
        // Waits for nothing, as it may happen on a thread that must not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Send all, one after the other, and wait for their answers; the first failure in their order.
async fn all(ahead: Vec<Ahead>) -> Result<(), tokio_postgres::Error> {
    let mut answers: Vec<_> = ahead.into_iter().map(|sent| (sent, None)).collect();
    poll_fn(|context| {
        for (sent, answer) in answers.iter_mut().filter(|(_, answer)| answer.is_none()) {
            if let Poll::Ready(ready) = sent.as_mut().poll(context) {
                *answer = Some(ready);
            }
        }
        if answers.iter().any(|(_, answer)| answer.is_none()) {
            return Poll::Pending;
        }
        Poll::Ready(answers.drain(..).filter_map(|(_, answer)| answer).collect())
    })
    .await
}

/// A column's value; `None` if it is of a kind that we never store.
pub(super) fn column(row: &Row, index: usize) -> Result<Option<ValueRef<'_>>> {
    let Some(column) = row.columns().get(index) else {
        return Ok(None);
    };
    let integer = |number: Option<i64>| number.map(ValueRef::Integer);
    let value = match *column.type_() {
        Type::INT8 => integer(row.try_get(index)?),
        Type::INT4 => integer(row.try_get::<_, Option<i32>>(index)?.map(i64::from)),
        Type::INT2 => integer(row.try_get::<_, Option<i16>>(index)?.map(i64::from)),
        Type::BOOL => integer(row.try_get::<_, Option<bool>>(index)?.map(i64::from)),
        Type::NUMERIC => integer(row.try_get::<_, Option<Whole>>(index)?.map(|whole| whole.0)),
        Type::TEXT | Type::VARCHAR | Type::NAME | Type::UNKNOWN => {
            row.try_get::<_, Option<&str>>(index)?.map(ValueRef::Text)
        }
        Type::BYTEA => row.try_get::<_, Option<&[u8]>>(index)?.map(ValueRef::Blob),
        _ => return Ok(None),
    };
    Ok(Some(value.unwrap_or(ValueRef::Null)))
}

/// Where a column of this name is.
pub(super) fn position(row: &Row, name: &str) -> Option<usize> {
    row.columns()
        .iter()
        .position(|column| column.name().eq_ignore_ascii_case(name))
}

/// A value that a statement can take along when it is sent later.
type Parameter = Box<dyn ToSql + Sync + Send>;

fn lent(values: &[Parameter]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| &**value as _).collect()
}

/// What the server is sent for these values, in the types that it wants.
fn encoded(statement: &Statement, values: &[ValueRef<'_>]) -> Result<Vec<Parameter>> {
    if statement.takes != values.len() {
        return Err(SqlError::ParameterCount {
            found: values.len(),
            wanted: statement.takes,
        });
    }
    let value_of = |says: &Says| {
        let value = values.get(says.position()).copied();
        match says {
            Says::Value(_) => value.unwrap_or(ValueRef::Null),
            Says::IsNull(_) => ValueRef::Integer((value == Some(ValueRef::Null)).into()),
        }
    };
    statement
        .says
        .iter()
        .zip(statement.prepared.params())
        .map(|(says, wanted)| parameter(value_of(says), wanted))
        .collect()
}

fn parameter(value: ValueRef<'_>, wanted: &Type) -> Result<Parameter> {
    Ok(match (value, wanted) {
        (ValueRef::Null, &Type::INT4) => Box::new(None::<i32>),
        (ValueRef::Null, &Type::BOOL) => Box::new(None::<bool>),
        (ValueRef::Null, &Type::BYTEA) => Box::new(None::<Vec<u8>>),
        (ValueRef::Null, &Type::TEXT) => Box::new(None::<String>),
        (ValueRef::Null, _) => Box::new(None::<i64>),
        (ValueRef::Integer(number), &Type::INT4) => {
            Box::new(i32::try_from(number).map_err(|_| SqlError::TooLarge)?)
        }
        (ValueRef::Integer(number), &Type::BOOL) => Box::new(number != 0),
        (ValueRef::Integer(number), _) => Box::new(number),
        (ValueRef::Text(text), _) => Box::new(text.to_owned()),
        (ValueRef::Blob(bytes), _) => Box::new(bytes.to_owned()),
    })
}

/// A sum, which PostgreSQL makes a decimal number of any length.
struct Whole(i64);

/// What a decimal number's digits count to.
const DIGIT_BASE: i64 = 10_000;
const NEGATIVE: u16 = 0x4000;

impl FromSql<'_> for Whole {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        whole(raw)
            .map(Self)
            .ok_or_else(|| "a sum is no integer of 64 bits".into())
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::NUMERIC
    }
}

/// The wire form: how many digits to the base of 10,000, the first one's weight, the sign, a scale,
/// then the digits, all of 16 bits.
fn whole(raw: &[u8]) -> Option<i64> {
    let (words, []) = raw.as_chunks::<2>() else {
        return None;
    };
    let (&[_, weight, sign, _], digits) = words.split_first_chunk()?;
    let places = usize::try_from(i32::from(i16::from_be_bytes(weight)).checked_add(1)?).ok()?;
    // More digits than places are a fraction.
    if digits.len() > places {
        return None;
    }
    let mut sum = 0_i64;
    for place in 0..places {
        let digit = digits
            .get(place)
            .map_or(0, |digit| u16::from_be_bytes(*digit));
        sum = sum.checked_mul(DIGIT_BASE)?.checked_add(digit.into())?;
    }
    match u16::from_be_bytes(sign) {
        0 => Some(sum),
        NEGATIVE => Some(-sum),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(weight: i16, sign: u16, digits: &[u16]) -> Vec<u8> {
        let count = u16::try_from(digits.len()).unwrap();
        [count, weight.cast_unsigned(), sign, 0]
            .iter()
            .chain(digits)
            .flat_map(|word| word.to_be_bytes())
            .collect()
    }

    #[test]
    fn a_sum_is_read_as_the_integer_that_it_is() {
        assert_eq!(whole(&wire(0, 0, &[])), Some(0));
        assert_eq!(whole(&wire(0, 0, &[42])), Some(42));
        assert_eq!(whole(&wire(1, 0, &[1, 2])), Some(10_002));
        assert_eq!(whole(&wire(2, 0, &[7])), Some(700_000_000));
        assert_eq!(whole(&wire(0, NEGATIVE, &[9])), Some(-9));
    }

    #[test]
    fn what_is_no_integer_of_64_bits_is_refused() {
        assert_eq!(whole(&wire(0, 0, &[1, 5000])), None, "a fraction");
        assert_eq!(whole(&wire(-1, 0, &[5000])), None, "a half");
        assert_eq!(whole(&wire(5, 0, &[9])), None, "too large");
        assert_eq!(whole(&wire(0, 0xC000, &[])), None, "no number");
        assert_eq!(whole(&[0, 0, 0]), None, "cut off");
    }
}
