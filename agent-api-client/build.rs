//! Makes the schema known to cynic's macros, which check every operation against it.

fn main() {
    cynic_codegen::register_schema("prefect")
        .from_sdl_file("schema.graphql")
        .expect("schema.graphql is valid")
        .as_default()
        .expect("the build's output directory is writable");
}
