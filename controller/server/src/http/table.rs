//! The table of routes: a row says who may use a route, what it is for, and with which codes it may be
//! refused; what it takes and answers is read off its handler. Router and document are made of the
//! same rows.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use berth_api::rest::ErrorCode;
use berth_token::Scope;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::describe::{Documented, Sheet, Told};
use crate::http::gate::{self, Access, standing};
use crate::http::precondition::leave_out_what_is_known;

/// A method of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// As the document writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Put => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }

    fn to_http(self) -> axum::http::Method {
        match self {
            Self::Get => axum::http::Method::GET,
            Self::Post => axum::http::Method::POST,
            Self::Put => axum::http::Method::PUT,
            Self::Patch => axum::http::Method::PATCH,
            Self::Delete => axum::http::Method::DELETE,
        }
    }

    fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Put => MethodFilter::PUT,
            Self::Patch => MethodFilter::PATCH,
            Self::Delete => MethodFilter::DELETE,
        }
    }
}

impl Access {
    fn parts(self) -> (&'static str, Option<Scope>, bool) {
        match self {
            Self::Public => ("public", None, false),
            Self::AnyToken => ("any_token", None, false),
            Self::AnyTokenRated => ("any_token", None, true),
            Self::Operator(scope) => ("operator", Some(scope), true),
            Self::TenantPath(scope) => ("tenant_path", Some(scope), true),
            Self::Namespace(scope) => ("namespace", Some(scope), true),
            Self::Tenant(scope) => ("tenant", Some(scope), true),
            Self::TenantUnrated(scope) => ("tenant", Some(scope), false),
        }
    }

    fn is_for_tenants(self) -> bool {
        !matches!(self, Self::Public | Self::Operator(_))
    }

    fn is_public(self) -> bool {
        matches!(self, Self::Public)
    }

    /// For readers and for the tests that try every route with every kind of caller.
    fn to_value(self) -> Value {
        let (kind, scope, is_rated) = self.parts();
        json!({ "kind": kind, "scope": scope.map(Scope::as_str), "rated": is_rated })
    }

    /// The refusals that follow from it.
    fn describe(self, sheet: &mut Sheet<'_>) {
        let (_, _, is_rated) = self.parts();
        sheet.refuses(&[ErrorCode::Internal, ErrorCode::AuditUnavailable]);
        if !self.is_public() {
            sheet.refuses(&[
                ErrorCode::Unauthorized,
                ErrorCode::InvalidToken,
                ErrorCode::TokenExpired,
                ErrorCode::TokenRevoked,
                ErrorCode::PermissionDenied,
            ]);
        }
        if is_rated {
            sheet.refuses(&[ErrorCode::RateLimited]);
        }
        if matches!(self, Self::TenantPath(_)) {
            sheet.path("tenant", "A tenant's id");
            sheet.refuses(&[ErrorCode::NotFound]);
        }
    }
}

/// What a route is for, and the codes that are its own. Those that follow from its access, its path and
/// its extractors come by themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Says(pub(crate) &'static str, pub(crate) &'static [ErrorCode]);

/// One row, as the document shows it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) page: Map<String, Value>,
}

/// One row, as the router takes it.
type Attach = Box<dyn FnOnce(Router<Arc<App>>, &Arc<App>) -> Router<Arc<App>>>;

/// All rows.
pub(crate) struct Table {
    schemas: SchemaGenerator,
    rows: Vec<Row>,
    attach: Vec<Attach>,
}

impl Table {
    pub(crate) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        Self {
            schemas: settings.into_generator(),
            rows: Vec::new(),
            attach: Vec::new(),
        }
    }

    /// One more route.
    pub(crate) fn add<H, T, R>(
        mut self,
        method: Method,
        path: &'static str,
        access: Access,
        says: Says,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Arc<App>> + Documented<T, R>,
        T: 'static,
    {
        let mut sheet = Sheet::new(&mut self.schemas);
        access.describe(&mut sheet);
        if access.is_for_tenants() && standing::changes(&method.to_http(), path) {
            sheet.refuses(&[ErrorCode::TenantSuspended]);
        }
        H::describe(&mut sheet);
        if method == Method::Get {
            sheet.may_be_known();
        }
        sheet.refuses(says.1);
        let (page, told) = sheet.finish();
        let page = whole_page(method, path, access, says, page);
        self.rows.push(Row { method, path, page });
        self.attach.push(Box::new(move |router, app| {
            let promise = Arc::new(Promise { method, path, told });
            let kept = (Arc::clone(app), promise);
            let guarded = on(method.filter(), handler)
                .route_layer(from_fn(leave_out_what_is_known))
                .route_layer(from_fn_with_state((Arc::clone(app), access), gate::guard))
                .route_layer(from_fn_with_state(kept, keep_the_promise));
            router.route(path, guarded)
        }));
        self
    }

    /// The routes of the service.
    pub(crate) fn into_router(self, app: &Arc<App>) -> Router<Arc<App>> {
        self.attach
            .into_iter()
            .fold(Router::new(), |router, attach| attach(router, app))
    }

    /// The rows, and the schemas that they refer to.
    pub(crate) fn into_pages(mut self) -> (Vec<Row>, Map<String, Value>) {
        let schemas = self.schemas.take_definitions(true);
        (self.rows, schemas)
    }
}

fn whole_page(
    method: Method,
    path: &'static str,
    access: Access,
    says: Says,
    mut page: Map<String, Value>,
) -> Map<String, Value> {
    let words = path.trim_start_matches('/').trim_start_matches("v1/");
    let id: String = format!("{} {words}", method.as_str())
        .chars()
        .filter(|c| !matches!(c, '{' | '}'))
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    page.insert("operationId".to_owned(), json!(id));
    page.insert("summary".to_owned(), json!(says.0));
    page.insert("x-berth-access".to_owned(), access.to_value());
    if !access.is_public() {
        page.insert("security".to_owned(), json!([{ "bearer": [] }]));
    }
    page
}

/// What a route's page says that it answers.
#[derive(Debug)]
struct Promise {
    method: Method,
    path: &'static str,
    told: Told,
}

/// Count the answer. One that the document does not know is a fault of the table: it goes out all the
/// same, and is told loudly, as tests fail on that line.
async fn keep_the_promise(
    State((app, promise)): State<(Arc<App>, Arc<Promise>)>,
    request: Request,
    next: Next,
) -> Response {
    let begin = Instant::now();
    let response = next.run(request).await;
    let (method, code) = (promise.method.as_str(), response.status().as_u16());
    app.metrics
        .answered(method, promise.path, code, begin.elapsed());
    let known = match response.extensions().get::<ApiError>() {
        Some(error) => promise.told.codes.contains(&error.code()),
        None => promise.told.statuses.contains(&code),
    };
    if !known {
        let error = response
            .extensions()
            .get::<ApiError>()
            .map(|error| error.code().as_str());
        tracing::error!(
            method,
            path = promise.path,
            status = code,
            code = error,
            "undocumented answer"
        );
    }
    response
}
