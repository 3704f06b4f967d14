-- Health of a FineTuneJob for Argo CD: Progressing until the run has ended or is suspended.
local ends = {Complete = "Healthy", Failed = "Degraded", Suspended = "Suspended"}
local health = {status = "Progressing", message = "Waiting for the operator."}
local status = obj.status or {}

-- Ignore a status that is based on an earlier generation of the spec.
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then
  return health
end

for _, condition in ipairs(status.conditions or {}) do
  health.message = condition.reason .. ": " .. (condition.message or "")
  if condition.status == "True" and ends[condition.type] ~= nil then
    health.status = ends[condition.type]
  end
end
return health
