{{- define "longstream.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "longstream.labels" -}}
app.kubernetes.io/name: longstream
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "longstream.selector" -}}
app.kubernetes.io/name: longstream
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: worker
{{- end }}

{{- define "longstream.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What every container of this chart is allowed to do: nothing but run. */}}
{{- define "longstream.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "longstream.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Where Kafka is and how to log in; secrets are files of Secrets that exist. */}}
{{- define "longstream.kafkaEnv" -}}
- {name: LONGSTREAM_BOOTSTRAP, value: {{ .Values.kafka.bootstrap | quote }}}
- {name: LONGSTREAM_PARTITIONS, value: {{ .Values.partitions | quote }}}
- {name: LONGSTREAM_REPLICATION, value: {{ .Values.replication | quote }}}
- {name: LONGSTREAM_SECURITY_PROTOCOL, value: {{ .Values.kafka.securityProtocol }}}
{{- if hasPrefix "SASL_" .Values.kafka.securityProtocol }}
- {name: LONGSTREAM_SASL_MECHANISM, value: {{ .Values.kafka.saslMechanism }}}
- {name: LONGSTREAM_SASL_USERNAME, value: {{ .Values.kafka.username | quote }}}
- {name: LONGSTREAM_SASL_PASSWORD_FILE, value: /etc/longstream/kafka-password/{{ .Values.kafka.passwordSecret.key }}}
{{- end }}
{{- if .Values.kafka.caSecret.name }}
- {name: LONGSTREAM_SSL_CAFILE, value: /etc/longstream/kafka-ca/{{ .Values.kafka.caSecret.key }}}
{{- end }}
{{- end }}

{{- define "longstream.kafkaMounts" -}}
{{- if hasPrefix "SASL_" .Values.kafka.securityProtocol }}
- {name: kafka-password, mountPath: /etc/longstream/kafka-password, readOnly: true}
{{- end }}
{{- if .Values.kafka.caSecret.name }}
- {name: kafka-ca, mountPath: /etc/longstream/kafka-ca, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "longstream.kafkaVolumes" -}}
{{- if hasPrefix "SASL_" .Values.kafka.securityProtocol }}
- {name: kafka-password, secret: {secretName: {{ .Values.kafka.passwordSecret.name }}, defaultMode: 0440}}
{{- end }}
{{- if .Values.kafka.caSecret.name }}
- {name: kafka-ca, secret: {secretName: {{ .Values.kafka.caSecret.name }}, defaultMode: 0444}}
{{- end }}
- {name: tmp, emptyDir: {sizeLimit: 256Mi}}
{{- end }}
