-- What analysts ask most, over the views runs, metrics and image_scores, which hold published runs
-- alone. `etstpm results sql QUERY` knows them; without a query it prints them for your own DuckDB.

-- The metrics of the run that passed the gate last, or that a person chose.
create or replace view latest_metrics as
select m.* from metrics m join runs r using (run_id) where r.is_latest;

-- One row a category, metric and night: the value, and by how much it moved since the night before.
create or replace view nights as
select
    m.category, m.protocol, m.level, m.metric, r.started_at, m.run_id, m.value, m.ci_low, m.ci_high,
    m.value - lag(m.value ignore nulls) over (
        partition by m.category, m.protocol, m.level, m.metric order by r.started_at, m.run_id
    ) as change,
    r.verdict, r.is_latest, m.reason
from metrics m join runs r using (run_id)
where m.defect_type = 'all';

-- One row a test image and run that was decided wrongly. factor: score over threshold; scores of
-- different students have no common scale.
create or replace view errors as
select
    run_id, category, defect_type, image_path, label, predicted, score, threshold,
    case when label = 1 then 'missed defect' else 'false alarm' end as error,
    score / threshold as factor
from image_scores
where label <> predicted;

-- One row a category and run that failed, and why.
create or replace view failures as
select distinct r.started_at, m.run_id, m.category, m.reason
from metrics m join runs r using (run_id)
where m.value is null and m.n_good is null and m.category <> 'mean';
