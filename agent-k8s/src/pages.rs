//! Lists that come in pages, smaller ones where objects are large.

use http_body_util::LengthLimitError;
use kube::Api;
use kube::api::ListParams;
use serde::de::DeserializeOwned;

/// Objects per page of a listing. A page is in memory as a whole, and a Job of a cluster with many
/// field managers takes 10 KB there.
pub(crate) const PAGE: u32 = 200;

/// Lists everything that `parameters` select, page by page, and hands each object over. A page that is
/// too large is asked for again with half as many objects.
///
/// # Errors
/// Those of the requests; that a single object is too large.
pub(crate) async fn list_all<K>(
    api: &Api<K>,
    parameters: &ListParams,
    mut each: impl FnMut(K),
) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let (mut page, mut after) = (PAGE, None);
    loop {
        let mut asked = parameters.clone().limit(page);
        asked.continue_token = after.clone();
        match api.list(&asked).await {
            Ok(listed) => {
                listed.items.into_iter().for_each(&mut each);
                after = listed.metadata.continue_.filter(|token| !token.is_empty());
                if after.is_none() {
                    return Ok(());
                }
            }
            Err(error) if is_too_large(&error) && page > 1 => page /= 2,
            Err(error) => return Err(error),
        }
    }
}

/// Returns whether a request failed because its answer was larger than any that is read.
pub(crate) fn is_too_large(error: &kube::Error) -> bool {
    let mut cause = Some(error as &dyn std::error::Error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::Client;
    use kube::client::{Body, ClientBuilder};
    use kube::core::PartialObjectMeta;

    use super::*;
    use crate::bounded::{Bounded, LARGEST};

    type Job = PartialObjectMeta<k8s_openapi::api::batch::v1::Job>;

    /// A client of an API server with so many objects of this size, and the page sizes it was asked for.
    pub(crate) fn server(objects: usize, size: usize) -> (Client, Arc<Mutex<Vec<usize>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (pages, text) = (asked.clone(), "x".repeat(size));
        let service = tower::service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let number = |name: &str| {
                let mut members = query.split('&').filter_map(|one| one.split_once('='));
                let found = members.find(|(key, _)| *key == name);
                found.and_then(|(_, value)| value.parse::<usize>().ok())
            };
            let (from, limit) = (
                number("continue").unwrap_or(0),
                number("limit").unwrap_or(objects),
            );
            let until = objects.min(from + limit);
            let mut items = Vec::new();
            if !query.contains("watch=") {
                pages.lock().expect("no panic").push(limit);
                items.extend((from..until).map(|n| {
                    let name = format!("\"name\":\"job-{n}\"");
                    format!("{{\"metadata\":{{{name},\"annotations\":{{\"a\":\"{text}\"}}}}}}")
                }));
            }
            let after = if until < objects {
                until.to_string()
            } else {
                String::new()
            };
            let metadata = format!("{{\"resourceVersion\":\"1\",\"continue\":\"{after}\"}}");
            let answer = format!(
                "{{\"metadata\":{metadata},\"items\":[{}]}}",
                items.join(",")
            );
            std::future::ready(Ok::<_, std::convert::Infallible>(Response::new(
                Body::from(answer.into_bytes()),
            )))
        });
        let client = ClientBuilder::new(service, "default").with_layer(&Bounded);
        (client.build(), asked)
    }

    #[tokio::test]
    async fn pages_that_are_too_large_are_asked_for_in_halves() {
        let (client, asked) = server(30, LARGEST / 20);
        let api: Api<Job> = Api::namespaced(client, "default");
        let mut names = Vec::new();
        let each = |job: Job| names.extend(job.metadata.name);
        let listed = list_all(&api, &ListParams::default(), each).await;
        assert!(listed.is_ok(), "{listed:?}");
        let expected: Vec<String> = (0..30).map(|n| format!("job-{n}")).collect();
        assert_eq!(names, expected);
        assert_eq!(
            *asked.lock().expect("no panic"),
            [200, 100, 50, 25, 12, 12, 12]
        );
    }

    #[tokio::test]
    async fn an_object_that_is_too_large_by_itself_is_an_error() {
        let (client, asked) = server(2, LARGEST);
        let api: Api<Job> = Api::namespaced(client, "default");
        let listed = list_all(&api, &ListParams::default(), |_| {}).await;
        assert!(is_too_large(&listed.expect_err("too large")));
        assert_eq!(asked.lock().expect("no panic").last(), Some(&1));
    }
}
