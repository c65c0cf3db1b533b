-- The published tables of the store {uri}, in DuckDB.
-- A run is published from the moment its run.json is there: all views keep to such runs.
create or replace view runs as
select
    r.run_id, r.status, r.verdict.status as verdict, r.verdict.reason as reason,
    r.verdict.baseline as baseline, r.started_at, r.created_at,
    r.run_id is not distinct from (
        select run_id from read_json({latest}, columns = {{run_id: 'VARCHAR'}})
    ) as is_latest
from read_json({runs}, columns = {{
    run_id: 'VARCHAR', status: 'VARCHAR', started_at: 'TIMESTAMPTZ', created_at: 'TIMESTAMPTZ',
    verdict: 'STRUCT(status VARCHAR, reason VARCHAR, baseline VARCHAR)'
}}) r;

create or replace view metrics as
select * from read_parquet({metrics}, hive_partitioning = true, union_by_name = true)
semi join runs using (run_id);

create or replace view image_scores as
select * from read_parquet({image_scores}, hive_partitioning = true, union_by_name = true)
semi join runs using (run_id);

