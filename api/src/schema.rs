//! How types that are texts on the wire show themselves in the API's document.
//!
//! The other types derive it; these are written by hand beside their parsers, with the pattern that
//! the parser holds to.

/// `JsonSchema` of a type that is a text of one pattern.
macro_rules! text_schema {
    ($type:ident, $pattern:expr) => {
        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}
