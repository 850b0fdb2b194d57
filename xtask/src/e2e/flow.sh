#!/bin/sh
# Stands in for `prefect execute flow-run`: tells the API that the run is Running, does what the
# variable FLOW says, and tells the API that the run is a Success unless that failed.

# tell STATE MESSAGE
tell() {
    wget -q -O - --header 'Content-Type: application/json' --post-data '{
        "query": "mutation($input: set_flow_run_states_input!) { set_flow_run_states(input: $input) { states { status message } } }",
        "variables": {"input": {"states": [{
            "flow_run_id": "'"$PREFECT__CONTEXT__FLOW_RUN_ID"'",
            "version": 1,
            "state": {"type": "'"$1"'", "message": "'"$2"'", "context": {}, "cached_inputs": {},
                "_result": {"type": "NoResultType", "__version__": "1.4.1"}, "__version__": "1.4.1"}
        }]}}
    }' "$PREFECT__CLOUD__API/graphql" || return
    echo
}

if [ "$*" != "execute flow-run" ]; then
    echo "unexpected arguments: $*" >&2
    exit 64
fi
tell Running "Running flow." || exit 65
eval "${FLOW:-true}" || exit
tell Success "All reference tasks succeeded."
