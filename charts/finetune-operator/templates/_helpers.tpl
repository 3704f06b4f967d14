{{/* Name of all objects: the release name, followed by the chart name unless the release name contains it. */}}
{{- define "finetune-operator.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Image reference. Without tag and digest, the tag is the chart version, so that upgrades include the image. */}}
{{- define "finetune-operator.image" -}}
{{- if regexMatch "[:@][^/]*$" .reference -}}
{{- .reference -}}
{{- else -}}
{{- printf "%s:%s" .reference .version -}}
{{- end -}}
{{- end -}}

{{/* The values in defaults that are not empty, as JSON. */}}
{{- define "finetune-operator.defaults" -}}
{{- $set := dict -}}
{{- range $name, $value := .Values.defaults -}}
{{- if $value -}}{{- $_ := set $set $name $value -}}{{- end -}}
{{- end -}}
{{- $set | toJson -}}
{{- end -}}

{{/* Permissions of the operator, in the cluster or in each watched namespace. They never include Secrets. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [list, watch, delete] # delete: ttlSecondsAfterFinished
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
# OpenShift requires this permission to set a FineTuneJob as the owner of a Job.
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete] # patch: deadlines, delete: suspend
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# The headless Service for the rendezvous of a FineTuneJob with several nodes.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
# Quota errors and missing Secrets are reported only in Events.
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- if .Values.kueue.enabled }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end }}
{{- end -}}

{{/* Destinations of trainer pods and task pods. */}}
{{- define "finetune-operator.egress" -}}
{{- with .Values.networkPolicy.dns }}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
    - {protocol: UDP, port: 5353}
    - {protocol: TCP, port: 5353}
{{- end }}
{{- range .Values.networkPolicy.destinations }}
- to:
    {{- if .cidr }}
    - ipBlock:
        cidr: {{ .cidr }}
        {{- $metadata := get (dict "0.0.0.0/0" (list "169.254.0.0/16" "100.100.100.200/32" "168.63.129.16/32") "::/0" (list "fe80::/10" "fd00:ec2::/32" "fd20:ce::/64")) .cidr }}
        {{- with concat (.except | default list) ($metadata | default list) | uniq }}
        except:
          {{- toYaml . | nindent 10 }}
        {{- end }}
    {{- else }}
    - {{- toYaml (omit . "ports") | nindent 6 }}
    {{- end }}
  ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- if .Values.networkPolicy.allowMetadata }}
# Metadata services of AWS, Azure and Google, of EKS Pod Identity, and of GKE, which is behind the first address.
- to:
    - ipBlock: {cidr: 169.254.169.254/32}
    - ipBlock: {cidr: 169.254.170.23/32}
    - ipBlock: {cidr: 169.254.169.252/32}
  ports:
    - {protocol: TCP, port: 80}
    - {protocol: TCP, port: 988}
{{- end }}
{{- end -}}
