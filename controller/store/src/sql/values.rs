//! Values on their way into a statement and out of a row, the same for both databases.
//!
//! There are four kinds: nothing, an integer, text, bytes. A Rust type says here which one it is. A
//! number that does not fit is an error, never a different number.

use super::{Result, SqlError};

/// A parameter whose kind is known when the program runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Integer(i64),
    Text(String),
}

/// A value that is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueRef<'a> {
    Null,
    Integer(i64),
    Text(&'a str),
    Blob(&'a [u8]),
}

/// What can be a statement's parameter.
pub(crate) trait ToValue {
    fn to_value(&self) -> Result<ValueRef<'_>>;
}

/// What can be read from a column; `None` if the column holds something else.
pub(crate) trait FromValue: Sized {
    fn from_value(value: ValueRef<'_>) -> Option<Self>;
}

impl ToValue for Value {
    fn to_value(&self) -> Result<ValueRef<'_>> {
        Ok(match self {
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text),
        })
    }
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Result<ValueRef<'_>> {
        (**self).to_value()
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Result<ValueRef<'_>> {
        self.as_ref().map_or(Ok(ValueRef::Null), T::to_value)
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        match value {
            ValueRef::Null => Some(None),
            ValueRef::Integer(_) | ValueRef::Text(_) | ValueRef::Blob(_) => {
                T::from_value(value).map(Some)
            }
        }
    }
}

/// Integers; both databases hold them as `i64`.
macro_rules! integers {
    ($($integer:ty),*) => {$(
        impl ToValue for $integer {
            fn to_value(&self) -> Result<ValueRef<'_>> {
                i64::try_from(*self)
                    .map(ValueRef::Integer)
                    .map_err(|_| SqlError::TooLarge)
            }
        }

        impl FromValue for $integer {
            fn from_value(value: ValueRef<'_>) -> Option<Self> {
                match value {
                    ValueRef::Integer(number) => Self::try_from(number).ok(),
                    ValueRef::Null | ValueRef::Text(_) | ValueRef::Blob(_) => None,
                }
            }
        }
    )*};
}
integers!(i8, i16, i32, i64, isize, u8, u16, u32, u64, usize);

impl ToValue for bool {
    fn to_value(&self) -> Result<ValueRef<'_>> {
        Ok(ValueRef::Integer((*self).into()))
    }
}

impl FromValue for bool {
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        i64::from_value(value).map(|number| number != 0)
    }
}

impl ToValue for str {
    fn to_value(&self) -> Result<ValueRef<'_>> {
        Ok(ValueRef::Text(self))
    }
}

impl ToValue for String {
    fn to_value(&self) -> Result<ValueRef<'_>> {
        Ok(ValueRef::Text(self))
    }
}

impl FromValue for String {
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        match value {
            ValueRef::Text(text) => Some(text.to_owned()),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Blob(_) => None,
        }
    }
}

impl ToValue for [u8] {
    fn to_value(&self) -> Result<ValueRef<'_>> {
        Ok(ValueRef::Blob(self))
    }
}

impl<const N: usize> ToValue for [u8; N] {
    fn to_value(&self) -> Result<ValueRef<'_>> {
        Ok(ValueRef::Blob(self))
    }
}

impl ToValue for Vec<u8> {
    fn to_value(&self) -> Result<ValueRef<'_>> {
        Ok(ValueRef::Blob(self))
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        match value {
            ValueRef::Blob(bytes) => Some(bytes.to_owned()),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Text(_) => None,
        }
    }
}

impl<const N: usize> FromValue for [u8; N] {
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        match value {
            ValueRef::Blob(bytes) => bytes.try_into().ok(),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Text(_) => None,
        }
    }
}

/// A statement's parameters: a tuple, an array of one type, or [`params_from_iter`].
pub(crate) trait Params {
    /// Lend the values to `run`.
    fn with<T>(self, run: impl FnOnce(&[ValueRef<'_>]) -> Result<T>) -> Result<T>;
}

/// Only this one has no elements, so that `[]` needs no type.
impl Params for [&dyn ToValue; 0] {
    fn with<T>(self, run: impl FnOnce(&[ValueRef<'_>]) -> Result<T>) -> Result<T> {
        run(&[])
    }
}

/// Values that are lent already.
impl Params for &[ValueRef<'_>] {
    fn with<T>(self, run: impl FnOnce(&[ValueRef<'_>]) -> Result<T>) -> Result<T> {
        run(self)
    }
}

macro_rules! arrays {
    ($($length:literal),*) => {$(
        impl<V: ToValue> Params for [V; $length] {
            fn with<T>(self, run: impl FnOnce(&[ValueRef<'_>]) -> Result<T>) -> Result<T> {
                with_all(&self, run)
            }
        }
    )*};
}
arrays!(1, 2, 3, 4, 5, 6, 7, 8);

/// Parameters whose number is known when the program runs.
pub(crate) struct ParamsFromIter<I>(I);

/// See [`ParamsFromIter`].
pub(crate) fn params_from_iter<I: IntoIterator<Item: ToValue>>(values: I) -> ParamsFromIter<I> {
    ParamsFromIter(values)
}

impl<I: IntoIterator<Item: ToValue>> Params for ParamsFromIter<I> {
    fn with<T>(self, run: impl FnOnce(&[ValueRef<'_>]) -> Result<T>) -> Result<T> {
        with_all(&self.0.into_iter().collect::<Vec<_>>(), run)
    }
}

fn with_all<V: ToValue, T>(
    values: &[V],
    run: impl FnOnce(&[ValueRef<'_>]) -> Result<T>,
) -> Result<T> {
    let lent = values
        .iter()
        .map(ToValue::to_value)
        .collect::<Result<Vec<_>>>()?;
    run(&lent)
}

macro_rules! tuples {
    ($(($($name:ident)+))*) => {$(
        impl<$($name: ToValue),+> Params for ($($name,)+) {
            fn with<T>(self, run: impl FnOnce(&[ValueRef<'_>]) -> Result<T>) -> Result<T> {
                #[expect(non_snake_case, reason = "each is named as its type")]
                let ($($name,)+) = &self;
                run(&[$($name.to_value()?),+])
            }
        }
    )*};
}
tuples! {
    (A)
    (A B)
    (A B C)
    (A B C D)
    (A B C D E)
    (A B C D E F)
    (A B C D E F G)
    (A B C D E F G H)
    (A B C D E F G H I)
    (A B C D E F G H I J)
    (A B C D E F G H I J K)
    (A B C D E F G H I J K L)
    (A B C D E F G H I J K L M)
    (A B C D E F G H I J K L M N)
    (A B C D E F G H I J K L M N O)
    (A B C D E F G H I J K L M N O P)
    (A B C D E F G H I J K L M N O P Q)
    (A B C D E F G H I J K L M N O P Q R)
    (A B C D E F G H I J K L M N O P Q R S)
    (A B C D E F G H I J K L M N O P Q R S U)
}
